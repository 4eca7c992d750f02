//! What other daemons ask: replica-servers, the meta leader, the collector.

use std::rc::Rc;

use pegasus_pacifica::Event;
use pegasus_rpc::peer::replica::{DiskStats, ReplicaStats};
use pegasus_rpc::peer::{NodeStats, ReplicaPeer};
use pegasus_types::learn::{
    LearnOpen, LearnPlan, LearnRefused, LogChunk, LogRequest, RowsChunk, RowsRequest,
};
use pegasus_types::message::{Envelope, Grant, Heartbeat, HeartbeatAck};
use pegasus_types::meta::ProposalRequest;
use pegasus_types::{AppInfo, ErrorCode, Node, PartitionConfig};
use tarpc::context::Context;

use crate::clock;
use crate::learn_io::teacher;
use crate::meta_link;
use crate::node::Shell;

/// For one connection.
#[derive(Clone, Debug)]
pub struct PeerApi {
    pub shell: Rc<Shell>,
    pub from: Node,
}

impl ReplicaPeer for PeerApi {
    async fn deliver(self, _: Context, batch: Vec<Envelope>) {
        let from = self.from;
        self.shell
            .post_all(batch.into_iter().map(|envelope| Event::Received { from: from.clone(), envelope }));
    }

    async fn heartbeat(self, _: Context, heartbeat: Heartbeat) -> HeartbeatAck {
        let (incarnation, to_incarnation, seq) =
            (self.shell.incarnation, heartbeat.incarnation, heartbeat.seq);
        let now = clock::boot_ms();
        let (ack, healthy) = self.shell.with(|state| {
            state.heartbeat_ack = None;
            state.step(&self.shell, now, Event::Heartbeat { from: self.from, heartbeat });
            (state.heartbeat_ack.take(), state.log_healthy)
        });
        // What the step began may wait for the end of a turn.
        self.shell.wake.notify_one();
        ack.unwrap_or(HeartbeatAck {
            incarnation,
            to_incarnation,
            seq,
            grant: Grant::Some { granted: Vec::new(), newer: Vec::new() },
            log_healthy: healthy,
        })
    }

    async fn learn_open(self, _: Context, request: LearnOpen) -> Result<LearnPlan, LearnRefused> {
        teacher::open(&self.shell, &request)
    }

    async fn learn_rows(self, _: Context, request: RowsRequest) -> Result<RowsChunk, LearnRefused> {
        teacher::rows(&self.shell, request).await
    }

    async fn learn_log(self, _: Context, request: LogRequest) -> Result<LogChunk, LearnRefused> {
        teacher::log(&self.shell, request).await
    }

    async fn adopt(self, _: Context, configs: Vec<(AppInfo, PartitionConfig)>) {
        meta_link::adopt_push(&self.shell, configs);
    }

    async fn propose(self, _: Context, request: ProposalRequest) -> ErrorCode {
        let ProposalRequest { gpid, ballot, proposal } = request;
        if !self.shell.with(|state| state.replicas.contains_key(&gpid)) {
            return ErrorCode::ObjectNotFound;
        }
        self.shell.post(Event::Propose { gpid, ballot, proposal });
        ErrorCode::Ok
    }

    async fn stats(self, _: Context) -> NodeStats {
        stats(&self.shell)
    }
}

pub fn stats(shell: &Rc<Shell>) -> NodeStats {
    shell.with(|state| {
        let disks = state.disks.iter().map(|disk| {
            let log = disk.log.stats();
            DiskStats {
                tag: disk.tag.clone(),
                healthy: disk.broken.is_none(),
                capacity_bytes: disk.capacity_bytes,
                available_bytes: disk.available_bytes,
                log_bytes: log.bytes,
            }
        });
        let left_out = shell.left_out(&state.disks).map(|(dir, _)| DiskStats {
            tag: dir.tag().to_owned(),
            healthy: false,
            capacity_bytes: 0,
            available_bytes: 0,
            log_bytes: 0,
        });
        let replicas = state.core.reports().into_iter().map(|mut report| {
            let Some(replica) = state.replicas.get(&report.gpid) else {
                return ReplicaStats {
                    report,
                    reads: 0,
                    writes: 0,
                    read_bytes: 0,
                    write_bytes: 0,
                    failed: 0,
                    disk_bytes: 0,
                    estimated_rows: 0,
                };
            };
            report.durable = replica.engine.durable_decree();
            report.disk_tag.clone_from(&state.disks[replica.disk].tag);
            let (sizes, counts) = (replica.engine.sizes(), &replica.counts);
            ReplicaStats {
                report,
                reads: counts.reads,
                writes: counts.writes,
                read_bytes: counts.read_bytes,
                write_bytes: counts.write_bytes,
                failed: counts.failed,
                disk_bytes: sizes.disk_bytes,
                estimated_rows: sizes.estimated_rows,
            }
        });
        NodeStats {
            node: shell.me.clone(),
            incarnation: shell.incarnation,
            uptime_ms: shell.started.elapsed().as_millis() as u64,
            version: pegasus_telemetry::version::VERSION.to_owned(),
            memory_bytes: resident_bytes(),
            disks: disks.chain(left_out).collect(),
            replicas: replicas.collect(),
        }
    })
}

/// Of this process; 0 when it cannot be told.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib: u64 = line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
    kib * 1024
}
