//! POST, PUT, PATCH, DELETE.

use anyhow::{Context, ensure};
use serde_json::Value;
use weft_tests::{ApiServer, Result};

use crate::apiserver::client::send;

/// Method, path, kind of body, body => code, place in the answer, what is there.
/// `^` stands for the path of the line before.
const TABLE: &str = r#"
GET    /api/v1/namespaces/default/configmaps/m  -      -                                                => 404 /reason "NotFound"
POST   /api/v1/namespaces/default/configmaps    json   {"metadata":{"name":"m"},"data":{"a":"1"}}       => 201 /kind "ConfigMap"
POST   ^  json      {"metadata":{"name":"m"}}                                 => 409 /reason "AlreadyExists"
POST   ^  json      {"metadata":{"generateName":"m-"}}                        => 201 /metadata/generateName "m-"
POST   ^  json      {"metadata":{}}                                           => 422 /reason "Invalid"
POST   ^  json      {"metadata":{"name":"M_"}}                                => 422 /reason "Invalid"
POST   ^  json      {"metadata":{"name":"x","resourceVersion":"7"}}           => 400 /reason "BadRequest"
POST   ^  json      {"kind":"Pod","metadata":{"name":"x"}}                    => 400 /reason "BadRequest"
POST   ^  json      {"metadata":{"name":"x","namespace":"other"}}             => 400 /reason "BadRequest"
POST   ^  json      {"metadata":                                              => 400 /reason "BadRequest"
POST   ^  protobuf  {}                                                        => 415 /reason "UnsupportedMediaType"
POST   /api/v1/namespaces/nowhere/configmaps    json   {"metadata":{"name":"m"}} => 404 /message "namespaces \"nowhere\" not found"
PUT    /api/v1/namespaces/default/configmaps/m  json   {"metadata":{"name":"m","resourceVersion":"1"}}  => 409 /reason "Conflict"
PUT    ^  json      {"metadata":{"name":"m"},"data":{"a":"2"}}                => 200 /data {"a":"2"}
PUT    ^  json      {"metadata":{"name":"other"}}                             => 400 /reason "BadRequest"
PATCH  ^  merge     {"data":{"a":null,"b":"3"}}                               => 200 /data {"b":"3"}
PATCH  ^  merge     {"metadata":{"resourceVersion":"1"}}                      => 409 /reason "Conflict"
PATCH  ^  steps     [{"op":"test","path":"/data/b","value":"3"},{"op":"add","path":"/data/c","value":"4"}] => 200 /data/c "4"
PATCH  ^  steps     [{"op":"test","path":"/data/b","value":"0"}]              => 422 /reason "Invalid"
PATCH  ^  json      {}                                                        => 415 /reason "UnsupportedMediaType"
PATCH  ^  apply     {"data":{"d":"5"}}                                        => 400 /reason "BadRequest"
PATCH  ^/status     merge {}                                                  => 405 /reason "MethodNotAllowed"
PATCH  /api/v1/namespaces/default/configmaps/m2?fieldManager=t  apply  {"data":{"d":"5"}} => 201 /data {"d":"5"}
PATCH  ^  apply     {"data":{"e":"6"}}                                        => 200 /data {"d":"5","e":"6"}
PATCH  /api/v1/namespaces/default/configmaps/m3 merge  {}                     => 404 /reason "NotFound"
DELETE /api/v1/namespaces/default/configmaps/m  json   {"preconditions":{"uid":"another"}} => 409 /reason "Conflict"
DELETE ^  -         -                                                         => 200 /status "Success"
DELETE ^  -         -                                                         => 404 /reason "NotFound"
DELETE /api/v1/namespaces/default/configmaps    -      -                      => 200 /items/1/metadata/name "m2"
POST   /api/v1/nodes           json       {"metadata":{"name":"n1"},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}} => 201 /status/addresses/0/address "192.0.2.1"
PATCH  /api/v1/nodes/n1        strategic  {"status":{"conditions":[{"type":"NetworkUnavailable"}]}} => 200 /status/conditions null
PATCH  /api/v1/nodes/n1/status strategic  {"status":{"conditions":[{"type":"Ready"}]}} => 200 /status/conditions [{"type":"Ready"}]
PATCH  ^  strategic {"status":{"conditions":[{"type":"NetworkUnavailable"}]}} => 200 /status/conditions [{"type":"Ready"},{"type":"NetworkUnavailable"}]
PATCH  ^  merge     {"spec":{"unschedulable":true}}                           => 200 /spec null
PATCH  ^  strategic {"metadata":{"annotations":{"weft.io/x":"y"}}}            => 200 /metadata/annotations {"weft.io/x":"y"}
PATCH  /api/v1/nodes/n1        merge      {"spec":{"unschedulable":true}}     => 200 /spec/unschedulable true
GET    /api/v1/nodes/n1/status -          -                                   => 200 /status/addresses/0/address "192.0.2.1"
GET    /api/v1/nodes/n1/proxy  -          -                                   => 405 /reason "MethodNotAllowed"
POST   /api/v1/nodes/n1        json       {}                                  => 405 /reason "MethodNotAllowed"
POST   /apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies  json  {"metadata":{"name":"p"},"spec":{"tier":"Admin"}} => 201 /metadata/generation 1
PUT    ^/p          json      {"metadata":{"name":"p"}}                       => 422 /reason "Invalid"
PATCH  ^  strategic {}                                                        => 415 /reason "UnsupportedMediaType"
PATCH  ^/status     merge {"metadata":{"labels":{"a":"b"}},"spec":{"tier":"Baseline"},"status":{"conditions":[]}} => 200 /spec/tier "Admin"
GET    /apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies/p  - -    => 200 /metadata/labels null
GET    ^  -         -                                                         => 200 /status/conditions []
POST   /api/v1/namespaces/default/pods    json  {"metadata":{"name":"p"},"spec":{"nodeName":"n1"},"status":{"phase":"Running"}} => 201 /status {"phase":"Pending"}
DELETE ^/p          - -                                                       => 200 /kind "Pod"
DELETE ^?gracePeriodSeconds=0  - -                                            => 200 /status "Success"
POST   /api/v1/namespaces                 json  {"metadata":{"name":"ns"}}    => 201 /metadata/labels/kubernetes.io~1metadata.name "ns"
POST   ^/ns/secrets json  {"metadata":{"name":"s"},"data":{"key":"c2VjcmV0"}} => 201 /data/key "c2VjcmV0"
POST   ^  json      {"metadata":{"name":"s2"},"data":{"key":"no base64"}}     => 400 /reason "BadRequest"
DELETE /api/v1/namespaces/ns              - -                                 => 200 /status "Success"
GET    ^/secrets/s  - -                                                       => 404 /reason "NotFound"
"#;

fn content_type(word: &str) -> &str {
    match word {
        "merge" => "application/merge-patch+json",
        "strategic" => "application/strategic-merge-patch+json",
        "steps" => "application/json-patch+json",
        "apply" => "application/apply-patch+yaml",
        "protobuf" => "application/vnd.kubernetes.protobuf",
        _ => "application/json",
    }
}

#[test]
fn writes() -> Result {
    let server = ApiServer::start()?;
    let mut before = String::new();
    for line in TABLE.lines().filter(|line| !line.is_empty()) {
        let (request, expected) = line.split_once(" => ").context("no =>")?;
        let mut words = request.split_whitespace();
        let mut word = || words.next().unwrap_or_default();
        let (method, path, kind) = (word(), word().replace('^', &before), word());
        let body = words.collect::<Vec<_>>().join(" ");
        let body = if body == "-" { "" } else { &body };
        let mut expected = expected.splitn(3, ' ');
        let code: u16 = expected.next().unwrap_or_default().parse()?;
        let place = expected.next().unwrap_or_default();
        let wanted: Value = serde_json::from_str(expected.next().unwrap_or_default())?;

        let headers = format!("Content-Type: {}\r\n", content_type(kind));
        let answer = send(server.address(), method, &path, &headers, body)?;
        let got = answer.code;
        let answer = answer.json().with_context(|| line.to_owned())?;
        ensure!(got == code, "{line}: {got}: {answer}");
        if code >= 400 {
            ensure!(answer["kind"] == "Status" && answer["code"] == code, "{line}: {answer}");
        }
        let found = answer.pointer(place).cloned().unwrap_or_default();
        ensure!(found == wanted, "{line}: at {place} is {found}: {answer}");
        before = path;
    }
    Ok(())
}
