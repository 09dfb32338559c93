//! Records between simulated nodes, as in `mesh::sync`.

use super::*;

impl SimMesh {
    /// As `sync::leaves`.
    pub(super) fn leaves(&self, from: NodeId, asked: &SyncSummary) -> SyncLeaves {
        self.tell_head(from, asked.ledger);
        let head = *lock(&self.head);
        lock(&self.records).leaves(asked, head)
    }

    /// As `sync::part`.
    pub(super) fn part(&self, from: NodeId, part: SyncPart) -> Result<SyncPartReply, Failure> {
        self.tell_head(from, part.ledger);
        let head = *lock(&self.head);
        let reply = lock(&self.records).compare_part(&part, head);
        let reply = reply.ok_or_else(|| Failure {
            code: Failure::BAD_REQUEST,
            message: format!("{} is no number of leaves", part.of),
        })?;
        self.told_standings(from, part.alive, part.standings);
        Ok(reply)
    }

    fn told_standings(&self, from: NodeId, alive: u32, standings: Vec<Standing>) {
        if !standings.is_empty() {
            let _ = self.swim.try_send(Input::Standings { from, alive, standings });
        }
    }

    /// As `sync::exchange`: compares with one peer.
    pub(super) async fn exchange(self: &Arc<Self>, node: NodeId) {
        let Ok(_turn) = self.exchanging.acquire().await else { return };
        let head = *lock(&self.head);
        let summary = lock(&self.records).summary(head);
        let Ok(frame) = Frame::new(&summary) else { return };
        let Some(reply) = self.request(node, frame, PATIENCE).await else { return };
        let Ok(leaves) = reply.decode::<SyncLeaves>() else { return };
        self.tell_head(node, leaves.ledger);
        if leaves.leaves.is_empty() {
            return;
        }
        let Some(part) = lock(&self.records).part(&leaves, head) else { return };
        let Ok(frame) = Frame::new(&part) else { return };
        let Some(reply) = self.request(node, frame, PATIENCE).await else { return };
        let Ok(reply) = reply.decode::<SyncPartReply>() else { return };
        let SyncPartReply { records, wanted, standings, alive, ledger } = reply;
        let doubts = records.iter().any(|r| r.node == self.me).then_some(self.me);
        self.take_records(node, records);
        self.tell_head(node, ledger);
        let wanted: Vec<NodeRecord> = {
            let records = lock(&self.records);
            let wanted = wanted.iter().chain(&doubts);
            wanted.filter_map(|n| records.get(*n).cloned()).collect()
        };
        for chunk in wanted.chunks(RUMOR) {
            if let Ok(frame) = Frame::new(&Rumor { records: chunk.to_vec() }) {
                self.send(node, frame);
            }
        }
        self.told_standings(node, alive, standings);
    }

    /// As `sync::take_records`.
    pub(super) fn take_records(&self, from: NodeId, records: Vec<NodeRecord>) {
        let mut fresh = Vec::new();
        let mut overtaken = None;
        let connected: BTreeSet<NodeId> = lock(&self.pool).keys().copied().collect();
        {
            let mut store = lock(&self.records);
            for record in records {
                let node = record.node;
                if node != from && connected.contains(&node) && store.is_hearsay(&record) {
                    lock(&self.doubted).insert(node);
                    continue;
                }
                let offer = match node == from {
                    true => store.told_by_itself(record),
                    false => store.offer(record),
                };
                match offer {
                    Offer::Fresh => fresh.push(node),
                    Offer::Overtaken => {
                        overtaken = store.own().map(|r| r.incarnation);
                        fresh.push(node);
                    }
                    Offer::Old | Offer::Refused(_) => {}
                }
            }
        }
        if let Some(incarnation) = overtaken {
            let _ = self.swim.try_send(Input::NewLife(incarnation));
        }
        if fresh.is_empty() {
            return;
        }
        let from_whom = |node| Some(from).filter(|_| node != self.me);
        lock(&self.fresh).extend(fresh.into_iter().map(|node| (node, from_whom(node))));
        self.fresh_wake.notify_one();
        self.refresh_view();
    }
}

/// As `sync::rumor_loop`.
pub(super) async fn rumors(mesh: Arc<SimMesh>) {
    loop {
        mesh.fresh_wake.notified().await;
        tokio::time::sleep(COALESCE).await;
        let fresh = std::mem::take(&mut *lock(&mesh.fresh));
        let mut groups: BTreeMap<Option<NodeId>, Vec<NodeRecord>> = BTreeMap::new();
        {
            let records = lock(&mesh.records);
            for (node, from) in fresh {
                if let Some(record) = records.get(node) {
                    groups.entry(from).or_default().push(record.clone());
                }
            }
        }
        for (from, records) in groups {
            let own = records.iter().any(|r| r.node == mesh.me);
            let count = if own { usize::MAX } else { FAN_OUT };
            for chunk in records.chunks(RUMOR) {
                let Ok(frame) = Frame::new(&Rumor { records: chunk.to_vec() }) else { continue };
                for node in mesh.some_peers(count, from) {
                    mesh.send(node, frame.clone());
                }
            }
        }
    }
}

/// As `sync::anti_entropy_loop`.
pub(super) async fn anti_entropy(mesh: Arc<SimMesh>) {
    loop {
        let records = lock(&mesh.records).len();
        tokio::time::sleep(interval(records, host::rng().random())).await;
        if let Some(node) = mesh.some_peers(1, None).pop() {
            mesh.exchange(node).await;
        }
        let doubted = std::mem::take(&mut *lock(&mesh.doubted));
        for node in doubted.into_iter().take(DOUBTED) {
            let known = lock(&mesh.pool).contains_key(&node);
            if known {
                mesh.exchange(node).await;
            }
        }
    }
}
