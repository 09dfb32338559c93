//! The core against a naive reading of the same streams.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type World = BTreeMap<(Kind, String), u64>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Pod,
    Other(Source),
}

fn kind(source: Source) -> Kind {
    match source {
        Source::LocalPods | Source::OtherPods => Kind::Pod,
        other => Kind::Other(other),
    }
}

fn object(key: &str, version: u64) -> Object<u64> {
    Object { key: key.into(), version: version.to_string(), body: Some(version) }
}

struct Feed {
    core: Core<u64>,
    world: World,
    followed: Vec<Source>,
    now: Instant,
}

impl Feed {
    fn new() -> Self {
        let (core, followed) = Core::new();
        Self { core, world: World::new(), followed, now: Instant::now() }
    }

    fn hear(&mut self, source: Source, heard: Heard<Object<u64>>) {
        let step = self.core.hear(source, heard, self.now);
        for op in &step.ops {
            if let Op::Put(source, ..) = op {
                for need in source.needs() {
                    assert!(self.core.complete(*need), "{source:?} before {need:?}");
                }
            }
        }
        self.take(step.ops);
        for source in step.start {
            assert!(!self.followed.contains(&source));
            self.followed.push(source);
        }
    }

    fn take(&mut self, ops: Vec<Op<u64>>) {
        for op in ops {
            match op {
                Op::Put(source, key, body) => {
                    self.world.insert((kind(source), key.to_string()), body);
                }
                Op::Remove(source, key) => {
                    self.world.remove(&(kind(source), key.to_string()));
                }
            }
        }
    }

    fn recall(&mut self, memory: &[(Source, &str, u64)]) {
        let id = |(source, key, body): &(Source, &str, u64)| ((*source, (*key).into()), *body);
        let ops = self.core.recall(memory.iter().map(id).collect());
        self.take(ops);
    }

    fn list(&mut self, source: Source, objects: &[(&str, u64)]) {
        self.hear(source, Heard::Begin);
        let items = objects.iter().map(|(key, version)| object(key, *version)).collect();
        self.hear(source, Heard::Items(items));
        self.hear(source, Heard::End("7".to_owned()));
    }
}

#[test]
fn without_policies_other_pods_are_not_asked_for() {
    let mut feed = Feed::new();
    assert_eq!(feed.followed, FIRST);
    feed.list(Source::Policies, &[]);
    feed.list(Source::Namespaces, &[]);
    feed.list(Source::LocalPods, &[("a/x", 1)]);
    assert!(!feed.core.synced());
    feed.hear(Source::ClusterPolicies, Heard::Failed(Failure::Absent));
    assert!(feed.core.synced());
    assert_eq!(feed.followed, FIRST);
    assert!(feed.core.sources().iter().all(|s| s.trouble.is_none()));
}

#[test]
fn a_policy_waits_for_its_peers() {
    let mut feed = Feed::new();
    feed.list(Source::LocalPods, &[]);
    feed.hear(Source::ClusterPolicies, Heard::Failed(Failure::Absent));
    feed.list(Source::Policies, &[("a/p", 5)]);
    assert_eq!(feed.followed[4..], [Source::OtherPods]);
    feed.list(Source::Namespaces, &[("a", 1)]);
    feed.hear(Source::Policies, Heard::Put(object("a/q", 6)));
    feed.hear(Source::Policies, Heard::Gone(object("a/p", 7)));
    assert!(!feed.core.synced());
    assert_eq!(feed.world.len(), 1);
    feed.list(Source::OtherPods, &[("a/y", 2)]);
    assert!(feed.core.synced());
    assert_eq!(feed.world.len(), 3);
    assert_eq!(feed.world[&(Kind::Other(Source::Policies), "a/q".to_owned())], 6);
    // Its kind is installed later: nodes are needed, and nothing else starts twice.
    feed.list(Source::ClusterPolicies, &[("c", 9)]);
    assert_eq!(feed.followed[5..], [Source::Nodes]);
    assert!(!feed.core.synced());
    feed.list(Source::Nodes, &[]);
    assert!(feed.core.synced());
    // ... and removed again.
    feed.hear(Source::ClusterPolicies, Heard::Failed(Failure::Absent));
    assert_eq!(feed.world.len(), 3);
}

#[test]
fn trouble_is_told_and_changes_nothing() {
    let mut feed = Feed::new();
    feed.list(Source::LocalPods, &[("a/x", 1)]);
    let before = feed.world.clone();
    feed.hear(Source::LocalPods, Heard::Failed(Failure::Away("refused".into())));
    feed.now += std::time::Duration::from_secs(9);
    feed.hear(Source::LocalPods, Heard::Failed(Failure::Denied("no list".into())));
    let state = feed.core.sources().into_iter().find(|s| s.source == Source::LocalPods).unwrap();
    let (since, failure) = state.trouble.unwrap();
    assert_eq!(failure, Failure::Denied("no list".into()));
    assert_eq!(feed.now.duration_since(since).as_secs(), 9);
    assert!(state.complete);
    assert_eq!(feed.world, before);
    feed.hear(Source::LocalPods, Heard::Alive(None));
    assert!(feed.core.sources().iter().all(|s| s.trouble.is_none()));
    feed.list(Source::Namespaces, &[]);
    // What may not be read is no reason to wait only where it may be missing.
    feed.list(Source::Policies, &[]);
    assert!(!feed.core.synced());
    feed.hear(Source::ClusterPolicies, Heard::Failed(Failure::Denied("no".into())));
    assert!(feed.core.synced());
    assert!(feed.core.sources().iter().any(|s| s.trouble.is_some()));
}

#[test]
fn an_older_answer_does_not_overrule_the_watch() {
    let mut feed = Feed::new();
    feed.list(Source::LocalPods, &[]);
    feed.hear(Source::LocalPods, Heard::Put(object("a/x", 11)));
    feed.hear(Source::LocalPods, Heard::Answer(object("a/x", 10)));
    let state = feed.core.sources().remove(0);
    assert_eq!((state.source, state.version), (Source::LocalPods, 11));
    assert_eq!(feed.world[&(Kind::Pod, "a/x".to_owned())], 11);
    assert!(feed.core.knows(Source::LocalPods, "a/x"));
    // One that was only asked for is forgotten by the next list, too.
    feed.hear(Source::LocalPods, Heard::Answer(object("a/y", 12)));
    feed.list(Source::LocalPods, &[("a/x", 13)]);
    assert_eq!(feed.world.len(), 1);
}

#[test]
fn a_pod_made_again_elsewhere_survives_the_end_of_the_old_one() {
    for new_first in [true, false] {
        let mut feed = Feed::new();
        feed.list(Source::LocalPods, &[("a/web-0", 10)]);
        feed.list(Source::OtherPods, &[]);
        if new_first {
            feed.hear(Source::OtherPods, Heard::Put(object("a/web-0", 20)));
            feed.hear(Source::LocalPods, Heard::Put(object("a/web-0", 11)));
            feed.hear(Source::LocalPods, Heard::Gone(object("a/web-0", 12)));
        } else {
            feed.hear(Source::LocalPods, Heard::Gone(object("a/web-0", 12)));
            feed.hear(Source::OtherPods, Heard::Put(object("a/web-0", 20)));
        }
        assert_eq!(feed.world[&(Kind::Pod, "a/web-0".to_owned())], 20);
    }
}

#[test]
fn what_is_told_replaces_what_is_remembered_at_once() {
    let mut feed = Feed::new();
    feed.core.expect_memory();
    feed.list(Source::LocalPods, &[("a/x", 50)]);
    assert!(feed.world.is_empty(), "it could be all that will be told for a long time");
    // An ADD asks for its pod: that answer is waited for.
    feed.hear(Source::LocalPods, Heard::Answer(object("a/new", 60)));
    assert_eq!(feed.world.len(), 1);
    feed.recall(&[
        (Source::LocalPods, "a/x", 5),
        (Source::LocalPods, "a/new", 6),
        (Source::LocalPods, "b/y", 7),
        (Source::Namespaces, "a", 1),
        (Source::Policies, "a/p", 8),
        (Source::Policies, "a/gone", 9),
    ]);
    let pod = |key: &str| (Kind::Pod, key.to_owned());
    assert_eq!((feed.world[&pod("a/x")], feed.world[&pod("a/new")], feed.world.len()), (5, 60, 6));
    let before = feed.world.clone();
    feed.list(Source::Namespaces, &[("a", 51)]);
    feed.hear(Source::ClusterPolicies, Heard::Failed(Failure::Absent));
    feed.list(Source::Policies, &[("a/p", 52)]);
    feed.hear(Source::LocalPods, Heard::Gone(object("a/new", 61)));
    assert!(feed.world == before && !feed.core.synced(), "pods elsewhere are not told yet");
    feed.list(Source::OtherPods, &[("c/z", 53)]);
    assert!(feed.core.synced());
    let mut told: Vec<_> = feed.world.keys().map(|(_, key)| key.as_str()).collect();
    told.sort_unstable();
    assert_eq!(told, ["a", "a/p", "a/x", "c/z"]);
    assert!(feed.world.values().all(|body| *body >= 50));
    // From now on there is nothing to remember.
    feed.recall(&[(Source::LocalPods, "a/late", 1)]);
    assert_eq!(feed.world.len(), 4);
}

/// What happens to the objects of one source, as an API server would tell it.
#[derive(Debug, Clone)]
enum Event {
    Put(u8),
    Delete(u8),
    /// The watch expired: everything is listed again, some of it changed unseen.
    Relist(Vec<u8>),
    Fail,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..6u8).prop_map(Event::Put),
        2 => (0..6u8).prop_map(Event::Delete),
        1 => prop::collection::vec(0..6u8, 0..6).prop_map(Event::Relist),
        1 => Just(Event::Fail),
    ]
}

proptest! {
    #[test]
    fn the_world_is_what_the_server_has(
        events in prop::collection::vec((0..6usize, event()), 0..80),
        memory in prop::option::of((0..80usize, prop::collection::vec((0..6usize, 0..9u8), 0..12))),
    ) {
        let mut feed = Feed::new();
        if memory.is_some() {
            feed.core.expect_memory();
        }
        let mut remembered = World::new();
        let mut server: BTreeMap<Source, BTreeMap<String, u64>> = BTreeMap::new();
        let mut version = 100;
        let mut listed = Vec::new();
        let tell = |feed: &mut Feed, server: &BTreeMap<Source, BTreeMap<String, u64>>, source| {
            let objects = server.get(&source).cloned().unwrap_or_default();
            let objects: Vec<_> = objects.iter().map(|(k, v)| (k.as_str(), *v)).collect();
            feed.list(source, &objects);
        };
        for (at, (source, event)) in events.into_iter().enumerate() {
            if let Some((when, objects)) = &memory
                && *when == at
                && feed.core.awaits_memory()
            {
                let objects: Vec<_> = objects
                    .iter()
                    .map(|(source, n)| (Source::ALL[*source], format!("{:?}-{n}", Source::ALL[*source])))
                    .collect();
                let objects: Vec<_> = objects.iter().map(|(s, key)| (*s, key.as_str(), 1)).collect();
                feed.recall(&objects);
                remembered.clone_from(&feed.world);
            }
            if feed.core.awaits_memory() {
                prop_assert_eq!(&feed.world, &remembered, "never a mixture");
            }
            let source = Source::ALL[source];
            if !feed.followed.contains(&source) {
                continue;
            }
            if !listed.contains(&source) {
                tell(&mut feed, &server, source);
                listed.push(source);
            }
            version += 1;
            // Pods of the two sources have names of their own here; the test
            // above is about those that change sides.
            let name = |n: u8| format!("{source:?}-{n}");
            let objects = server.entry(source).or_default();
            match event {
                Event::Put(n) => {
                    objects.insert(name(n), version);
                    feed.hear(source, Heard::Put(object(&name(n), version)));
                }
                Event::Delete(n) => {
                    if objects.remove(&name(n)).is_some() {
                        feed.hear(source, Heard::Gone(object(&name(n), version)));
                    }
                }
                Event::Relist(names) => {
                    *objects = names.iter().map(|n| (name(*n), version)).collect();
                    tell(&mut feed, &server, source);
                }
                Event::Fail => feed.hear(source, Heard::Failed(Failure::Away("x".into()))),
            }
        }
        // Everything that is followed is listed in the end.
        while let Some(source) = feed.followed.iter().find(|s| !listed.contains(s)).copied() {
            tell(&mut feed, &server, source);
            listed.push(source);
        }
        prop_assert!(feed.core.synced());
        let expected: World = server
            .iter()
            .flat_map(|(source, objects)| {
                objects.iter().map(|(key, version)| ((kind(*source), key.clone()), *version))
            })
            .collect();
        prop_assert_eq!(feed.world, expected);
    }
}
