//! What runs all the time in a simulated mesh, as in `mesh`.

use super::*;

/// As `swim_task::run`.
pub(super) async fn membership(mesh: Arc<SimMesh>, mut inputs: mpsc::Receiver<Input>) {
    let mut swim = Swim::new(mesh.me, mesh.session, host::rng().random());
    let mut greet = Instant::now() + GREET;
    let (mut seen, mut complete) = (0, None);
    loop {
        let wake = swim.deadline().map_or(greet, |due| Instant::from_std(due).min(greet));
        let input = tokio::select! {
            input = inputs.recv() => match input {
                Some(input) => Some(input),
                None => return,
            },
            () = tokio::time::sleep_until(wake) => None,
        };
        let now = Instant::now();
        if let Some(input) = input {
            // A packet that came too late.
            let _ = swim.handle(now.into_std(), input);
        }
        swim.tick(now.into_std());
        if now >= greet {
            greet = now + GREET;
            let state_of_things = (lock(&mesh.records).generation(), swim.fingerprint());
            let mut unheard = Vec::new();
            if complete != Some(state_of_things) {
                let heard = swim.heard();
                let records = lock(&mesh.records);
                let known = records.iter().filter(|r| !heard.contains(&r.node));
                unheard = known.map(|r| (r.node, r.incarnation)).collect();
                complete = unheard.is_empty().then_some(state_of_things);
            }
            swim.greet(now.into_std(), &unheard);
        }
        while let Some((to, packet)) = swim.poll() {
            if let Ok(frame) = Frame::new(&SwimFrame(packet)) {
                mesh.send(to, frame);
            }
        }
        let fingerprint = swim.fingerprint();
        if fingerprint == seen {
            continue;
        }
        seen = fingerprint;
        lock(&mesh.records).stand(swim.standings());
        let liveness = swim.liveness();
        let before = std::mem::replace(&mut *lock(&mesh.liveness), liveness.clone());
        let is_news =
            |(n, l): &(&NodeId, &Liveness)| **l == Liveness::Dead && before.get(n) != Some(l);
        for node in liveness.iter().filter(is_news).map(|(node, _)| *node) {
            let mesh = Arc::clone(&mesh);
            spawn(async move {
                let Ok(echo) = Frame::new(&Echo(Vec::new())) else { return };
                let known = lock(&mesh.pool).contains_key(&node);
                if known && mesh.request(node, echo, LAST_ASK).await.is_none() {
                    mesh.drop_conn(node, Input::Closed(node));
                }
            });
        }
        mesh.refresh_view();
    }
}

/// As `dialer::pursue`: one configured peer.
pub(super) async fn pursue(mesh: Arc<SimMesh>, target: usize) {
    let mut failures = 0;
    loop {
        let Some(target) = mesh.network.resolve(target) else { return };
        let known = lock(&mesh.pool).values().any(|conn| conn.ip == target);
        let (many, all) = {
            let view = mesh.view.borrow();
            let alive = view.members.values().filter(|m| m.liveness == Liveness::Alive).count();
            (alive > FULL_MESH, lock(&mesh.pool).len() >= ACTIVE)
        };
        if target == mesh.ip() || known || (many && all) {
            failures = 0;
            tokio::time::sleep(ROUND).await;
            continue;
        }
        match mesh.dial(target).await {
            Ok(_) => failures = 0,
            Err(_) => failures += 1,
        }
        tokio::time::sleep(pause(failures.max(1), host::rng().random())).await;
    }
}

/// As `dialer::maintain_loop`; also notices connections that have died.
pub(super) async fn maintain(mesh: Arc<SimMesh>) {
    loop {
        tokio::time::sleep(ROUND).await;
        let conns: Vec<_> = lock(&mesh.pool).iter().map(|(n, c)| (*n, c.clone())).collect();
        for (node, conn) in conns {
            if mesh.keeps(&conn) {
                mesh.hear(node, conn.ip);
            } else if conn.heard.elapsed() > IDLE {
                mesh.drop_conn(node, Input::Lost(node));
            }
        }
        let view = Arc::clone(&mesh.view.borrow());
        let live = view.members.values().filter(|m| m.liveness != Liveness::Dead);
        let live: Vec<_> = live.map(|m| m.record.node).filter(|n| *n != mesh.me).collect();
        let (missing, have) = {
            let pool = lock(&mesh.pool);
            let missing: Vec<_> = live.iter().filter(|n| !pool.contains_key(n)).copied().collect();
            (missing, pool.len())
        };
        let dense = live.len() < FULL_MESH;
        let wanted = if dense { missing.len() } else { ACTIVE.saturating_sub(have) };
        let mut rng = host::rng();
        for node in missing.into_iter().choose_multiple(&mut rng, wanted.min(PER_ROUND)) {
            if mesh.me < node || rng.random_ratio(1, 4) {
                let mesh = Arc::clone(&mesh);
                spawn(async move {
                    let _ = mesh.reach(node).await;
                });
            }
        }
    }
}
