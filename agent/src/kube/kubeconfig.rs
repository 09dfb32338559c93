//! A kubeconfig file: where the API server is, and who asks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use k8s_openapi::ByteString;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::access::{Access, Credential, TokenFile, Trust, Why, bearer, certificates, private_key};

/// The file. What is not named here, the agent does not use.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    clusters: Option<Vec<NamedCluster>>,
    users: Option<Vec<NamedUser>>,
    contexts: Option<Vec<NamedContext>>,
    current_context: Option<String>,
}

#[derive(Debug, Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Option<Cluster>,
}

#[derive(Debug, Deserialize)]
struct NamedUser {
    name: String,
    user: Option<User>,
}

#[derive(Debug, Deserialize)]
struct NamedContext {
    name: String,
    context: Option<Context>,
}

#[derive(Debug, Deserialize)]
struct Context {
    cluster: String,
    user: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<ByteString>,
    proxy_url: Option<String>,
    tls_server_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    username: Option<String>,
    password: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<ByteString>,
    client_key: Option<PathBuf>,
    client_key_data: Option<ByteString>,
    #[serde(rename = "as")]
    acts_as: Option<String>,
    as_uid: Option<String>,
    as_groups: Option<Vec<String>>,
    as_user_extra: Option<BTreeMap<String, IgnoredAny>>,
    exec: Option<IgnoredAny>,
    auth_provider: Option<IgnoredAny>,
}

/// Secrets stay out of messages.
impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").finish_non_exhaustive()
    }
}

/// The access that a file's current context gives.
pub(super) fn read(path: &Path) -> Result<Access, Why> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    // The first lines say what and where; more would show the file, and secrets are in it.
    let file: File = serde_saphyr::from_str(text)
        .map_err(|e| e.to_string().lines().next().unwrap_or_default().to_owned())?;
    access(file, path.parent().unwrap_or(Path::new("/")))
}

/// Paths are relative to `dir`.
fn access(file: File, dir: &Path) -> Result<Access, Why> {
    let name = file.current_context.unwrap_or_default();
    if name.is_empty() {
        return Err("it has no current-context".to_owned());
    }
    let mut contexts = file.contexts.unwrap_or_default().into_iter();
    let context = contexts.find(|one| one.name == name).and_then(|one| one.context);
    let context = context.ok_or_else(|| format!("it has no context `{name}`"))?;
    let mut clusters = file.clusters.unwrap_or_default().into_iter();
    let cluster = clusters.find(|one| one.name == context.cluster).and_then(|one| one.cluster);
    let cluster = cluster.ok_or_else(|| format!("it has no cluster `{}`", context.cluster))?;
    // As with kubectl, a user that is missing is nobody.
    let mut users = file.users.unwrap_or_default().into_iter();
    let user = users.find(|one| Some(&one.name) == context.user.as_ref()).and_then(|one| one.user);

    let place = format!("cluster `{}`", context.cluster);
    let mut access = at(cluster, dir).map_err(|why| format!("{place}: {why}"))?;
    let who = format!("user `{}`", context.user.unwrap_or_default());
    identify(&mut access, user.unwrap_or_default(), dir).map_err(|why| format!("{who}: {why}"))?;
    Ok(access)
}

fn at(cluster: Cluster, dir: &Path) -> Result<Access, Why> {
    let server = cluster.server.ok_or("it has no server")?;
    let url = server.parse().map_err(|e| format!("its server `{server}` is no address: {e}"))?;
    let mut access = Access::new(url);
    if !matches!(access.url.scheme_str(), Some("https" | "http")) {
        return Err(format!("its server `{server}` begins with neither https:// nor http://"));
    }
    if cluster.proxy_url.is_some_and(|url| !url.is_empty()) {
        return Err("its proxy-url is not supported: the agent connects without a proxy".into());
    }
    let authority = loaded(cluster.certificate_authority_data, cluster.certificate_authority, dir);
    let authority = authority.map_err(|why| format!("its certificate-authority: {why}"))?;
    if cluster.insecure_skip_tls_verify == Some(true) {
        access.trust = Trust::Anybody;
    } else if let Some(pem) = authority {
        let roots =
            certificates(&pem).map_err(|why| format!("its certificate-authority: {why}"))?;
        access.trust = Trust::Roots(roots);
    }
    if let Some(name) = cluster.tls_server_name.filter(|name| !name.is_empty()) {
        let parsed = name.clone().try_into();
        let parsed = parsed.map_err(|e| format!("its tls-server-name `{name}`: {e}"))?;
        access.server_name = Some(parsed);
    }
    Ok(access)
}

fn identify(access: &mut Access, user: User, dir: &Path) -> Result<(), Why> {
    for (field, given) in [
        ("exec", user.exec.is_some()),
        ("auth-provider", user.auth_provider.is_some()),
        ("as-user-extra", user.as_user_extra.is_some()),
    ] {
        if given {
            return Err(format!(
                "`{field}` is not supported: give it a token, a tokenFile or a client certificate"
            ));
        }
    }
    let chain = loaded(user.client_certificate_data, user.client_certificate, dir)
        .map_err(|why| format!("its client-certificate: {why}"))?;
    let key = loaded(user.client_key_data, user.client_key, dir)
        .map_err(|why| format!("its client-key: {why}"))?;
    access.identity = match (chain, key) {
        (None, None) => None,
        (Some(_), None) => return Err("it has a client-certificate and no client-key".into()),
        (None, Some(_)) => return Err("it has a client-key and no client-certificate".into()),
        (Some(chain), Some(key)) => Some((
            certificates(&chain).map_err(|why| format!("its client-certificate: {why}"))?,
            private_key(&key).map_err(|why| format!("its client-key: {why}"))?,
        )),
    };
    access.credential = match (user.username, user.password, user.token, user.token_file) {
        (Some(name), Some(password), ..) => Credential::Header(basic(&name, &password)?),
        (_, _, Some(token), _) => Credential::Header(bearer(&token)?),
        (_, _, _, Some(path)) => Credential::File(TokenFile::new(dir.join(path))?),
        _ => Credential::None,
    };
    let users = user.acts_as.into_iter().map(|name| ("impersonate-user", name));
    let uids = user.as_uid.into_iter().map(|uid| ("impersonate-uid", uid));
    let groups = user.as_groups.into_iter().flatten().map(|group| ("impersonate-group", group));
    for (name, value) in users.chain(uids).chain(groups) {
        let value = HeaderValue::try_from(&value)
            .map_err(|_| format!("`{value}`, as which it acts, cannot be in a header"))?;
        access.headers.push((HeaderName::from_static(name), value));
    }
    Ok(())
}

fn loaded(
    data: Option<ByteString>,
    path: Option<PathBuf>,
    dir: &Path,
) -> Result<Option<Vec<u8>>, Why> {
    match (data, path) {
        (Some(ByteString(bytes)), _) if !bytes.is_empty() => Ok(Some(bytes)),
        (_, Some(path)) if !path.as_os_str().is_empty() => {
            let path = dir.join(path);
            std::fs::read(&path).map(Some).map_err(|e| format!("{}: {e}", path.display()))
        }
        _ => Ok(None),
    }
}

/// `Authorization: Basic …`.
fn basic(name: &str, password: &str) -> Result<HeaderValue, Why> {
    let both = ByteString(format!("{name}:{password}").into_bytes());
    let text = serde_json::to_value(both).map_err(|e| e.to_string())?;
    let mut value = HeaderValue::try_from(format!("Basic {}", text.as_str().unwrap_or_default()))
        .map_err(|_| format!("its password cannot be in the header {AUTHORIZATION}"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(user: &str, cluster: &str) -> Result<Access, Why> {
        let text = format!(
            "apiVersion: v1\nkind: Config\npreferences: {{}}\ncurrent-context: c\n\
             clusters: [{{name: k, cluster: {{server: \"https://a:1/k8s\", {cluster}}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n\
             contexts: [{{name: x}}, {{name: c, context: {{cluster: k, user: u, namespace: n}}}}]\n",
        );
        access(serde_saphyr::from_str(&text).unwrap(), Path::new("/dir"))
    }

    fn asks(access: &Access) -> (String, Vec<(String, String)>) {
        let mut uri = "/version?x=1".parse().unwrap();
        let mut headers = hyper::HeaderMap::new();
        access.prepare(&mut uri, &mut headers).unwrap();
        let text = |v: &HeaderValue| v.to_str().unwrap().to_owned();
        (uri.to_string(), headers.iter().map(|(k, v)| (k.to_string(), text(v))).collect())
    }

    #[test]
    fn who_asks_and_where() {
        let of = |user: &str| asks(&given(user, "").unwrap());
        let header = |value: &str| vec![("authorization".to_owned(), value.to_owned())];
        assert_eq!(of("token: t"), ("https://a:1/k8s/version?x=1".into(), header("Bearer t")));
        assert_eq!(of("username: a, password: b").1, header("Basic YTpi"));
        assert_eq!(of("").1, vec![]);
        let acting = of("token: t, as: bob, as-groups: [x, y], as-uid: \"7\"").1;
        let groups = acting.iter().filter(|(name, _)| name == "impersonate-group").count();
        assert_eq!((acting.len(), groups), (5, 2));
        let skipped = given("", "insecure-skip-tls-verify: true").unwrap();
        assert!(matches!(skipped.trust, Trust::Anybody));
        assert!(matches!(given("", "").unwrap().trust, Trust::System));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let why = |user: &str, cluster: &str| given(user, cluster).err().unwrap();
        for field in ["exec: {command: x}", "auth-provider: {name: oidc}"] {
            let text = why(field, "");
            assert!(text.starts_with("user `u`: `"), "{text}");
            assert!(text.contains("not supported: give it a token"), "{text}");
        }
        assert!(why("tokenFile: none", "").contains("/dir/none: No such file"));
        assert!(why("client-key: /k", "").contains("client-key: /k: No such file"));
        assert!(why("client-key-data: YQ==", "").contains("and no client-certificate"));
        assert!(why("", "certificate-authority-data: YQ==").contains("there is no certificate"));
        assert!(why("", "proxy-url: \"http://p\"").contains("proxy-url is not supported"));
        let none = |text: &str| {
            access(serde_saphyr::from_str(text).unwrap(), Path::new("/")).err().unwrap()
        };
        assert_eq!(none("clusters: null"), "it has no current-context");
        assert_eq!(none("current-context: c"), "it has no context `c`");
        let lost = "current-context: c\ncontexts: [{name: c, context: {cluster: k}}]";
        assert_eq!(none(lost), "it has no cluster `k`");
    }
}
