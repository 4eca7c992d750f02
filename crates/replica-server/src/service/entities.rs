//! Numbers of this node as entities, for `GET /metrics` as JSON (metrics.md 2): the server, its replicas, its
//! disks. Names and units are those of Apache Pegasus where it has them.

use std::rc::Rc;
use std::time::Instant;

use pegasus_telemetry::entities::{Entities, Query};
use pegasus_telemetry::percentiles::{Percentiles, Recent, percentiles};
use pegasus_types::AppId;
use pegasus_types::meta::ReplicaStatus;

use super::peer_api;
use crate::metrics::{BOUNDS_US, Op};
use crate::node::{NodeState, Shell};
use crate::partition::Replica;

/// Requests and bytes of each operation, in the order of [`Op::ALL`].
const OPS: [(&str, &str); Op::ALL.len()] = [
    ("get_requests", "get_bytes"),
    ("ttl_requests", "ttl_bytes"),
    ("sortkey_count_requests", "sortkey_count_bytes"),
    ("multi_get_requests", "multi_get_bytes"),
    ("batch_get_requests", "batch_get_bytes"),
    ("scan_requests", "scan_bytes"),
    ("put_requests", "put_bytes"),
    ("remove_requests", "remove_bytes"),
    ("multi_put_requests", "multi_put_bytes"),
    ("multi_remove_requests", "multi_remove_bytes"),
    ("incr_requests", "incr_bytes"),
    ("check_and_set_requests", "check_and_set_bytes"),
    ("check_and_mutate_requests", "check_and_mutate_bytes"),
];

/// Times of requests of late.
pub type Times = Recent<(AppId, Op)>;

/// Those that `query` may want.
pub fn of_node(shell: &Rc<Shell>, query: &Query, times: &mut Times) -> Entities {
    let mut all = Entities::default();
    if query.wants("server") {
        server(&mut all, shell);
    }
    shell.with(|state| {
        if query.wants("replica") {
            state.replicas.values().for_each(|replica| of_replica(&mut all, replica));
        }
        if query.wants("disk") {
            disks(&mut all, shell, state);
        }
        if query.wants("table") || query.wants("profiler") {
            latencies(&mut all, state, times);
        }
    });
    all
}

/// By table, where Apache Pegasus has them by replica, and of all tables.
fn latencies(all: &mut Entities, state: &NodeState, times: &mut Times) {
    const UNIT: &str = "NanoSeconds";
    const HELP: &str = "From the arrival of a request to its answer, of the last minute or two.";
    let counts = state.metrics.latencies().map(|(app, op, latency)| ((app, op), latency.counts().to_vec()));
    let recent = times.look(Instant::now(), counts.collect());
    for op in Op::ALL {
        let mut of_all_tables = [0; BOUNDS_US.len() + 1];
        for ((app, _), counts) in recent.iter().filter(|((_, other), _)| *other == op) {
            let name = format!("{}_latency_ns", op.name());
            all.table(&app.to_string()).percentile(name, UNIT, HELP, in_ns(counts));
            of_all_tables.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        let task = format!("RPC_RRDB_RRDB_{}", op.name().to_uppercase());
        all.profiler(&task).percentile("profiler_server_rpc_latency_ns", UNIT, HELP, in_ns(&of_all_tables));
    }
}

fn in_ns(counts: &[u64]) -> Percentiles {
    percentiles(&BOUNDS_US.map(|us| us * 1000), counts)
}

fn server(all: &mut Entities, shell: &Rc<Shell>) {
    let stats = peer_api::stats(shell);
    let engine = shell.factory.stats();
    let server = all.server();
    server.gauge("total_replicas", "Replicas", "Replicas of this node.", stats.replicas.len());
    for (name, status) in [
        ("primary_replicas", ReplicaStatus::Primary),
        ("secondary_replicas", ReplicaStatus::Secondary),
        ("learning_replicas", ReplicaStatus::Learner),
        ("inactive_replicas", ReplicaStatus::Inactive),
        ("error_replicas", ReplicaStatus::Error),
    ] {
        let count = stats.replicas.iter().filter(|replica| replica.report.status == status).count();
        server.gauge(name, "Replicas", "Replicas of this node in this state.", count);
    }
    server
        .gauge("rdb_block_cache_mem_usage_bytes", "Bytes", "Block cache in use.", engine.cache_used_bytes)
        .gauge("rdb_wbm_total_mem_usage_bytes", "Bytes", "All memtables.", engine.memtable_bytes);
    shell.with(|state| {
        let copies = || state.copying.values().map(|copying| &copying.progress);
        let longest = copies().map(|copy| copy.since.elapsed().as_millis()).max().unwrap_or(0);
        let largest = copies().map(|copy| copy.bytes).max().unwrap_or(0);
        let (reads, writes) = state.metrics.failed();
        server
            .gauge("opening_replicas", "Replicas", "Replicas that are being opened.", state.opening)
            .gauge(
                "learning_replicas_max_duration_ms",
                "MilliSeconds",
                "The copy that takes longest.",
                longest as u64,
            )
            .gauge(
                "learning_replicas_max_copy_file_bytes",
                "Bytes",
                "The copy that is largest so far.",
                largest,
            )
            .gauge(
                "rdb_manual_compact_queued_tasks",
                "Tasks",
                "Manual compactions that wait for their turn.",
                state.compactions.queued(),
            )
            .gauge(
                "rdb_manual_compact_running_tasks",
                "Tasks",
                "Manual compactions under way.",
                state.compactions.running(),
            )
            .counter("read_failed_requests", "Requests", "Reads refused with an error.", reads)
            .counter("write_failed_requests", "Requests", "Writes refused with an error.", writes)
            .counter(
                "beacon_failed_count",
                "Beacons",
                "Beacons that no meta-server accepted.",
                state.metrics.beacons_failed,
            );
    });
}

fn of_replica(all: &mut Entities, replica: &Replica) {
    let (sizes, counts) = (replica.engine.sizes(), &replica.counts);
    let entity = all.replica(replica.gpid.app_id, replica.gpid.index);
    for ((requests, bytes), op) in OPS.into_iter().zip(Op::ALL) {
        let counted = counts.of(op);
        entity.counter(requests, "Requests", "Client requests answered.", counted.requests);
        entity.counter(bytes, "Bytes", "Bytes of writes asked for, and of values read.", counted.bytes);
    }
    entity
        .counter(
            "read_capacity_units",
            "CapacityUnits",
            "4 KiB read, begun ones count whole.",
            counts.read_units,
        )
        .counter(
            "write_capacity_units",
            "CapacityUnits",
            "4 KiB written, begun ones count whole.",
            counts.write_units,
        )
        .gauge("rdb_total_sst_size_mb", "MegaBytes", "Tables on disk.", sizes.disk_bytes >> 20)
        .gauge("rdb_total_sst_size_bytes", "Bytes", "Tables on disk.", sizes.disk_bytes)
        .gauge("rdb_memtable_mem_usage_bytes", "Bytes", "Memtables.", sizes.memory_bytes)
        .gauge(
            "rdb_estimated_keys",
            "Keys",
            "Rows, estimated; deleted ones count until compaction.",
            sizes.estimated_rows,
        );
}

fn disks(all: &mut Entities, shell: &Shell, state: &NodeState) {
    for disk in &state.disks {
        all.disk(&disk.tag, &disk.root.display().to_string())
            .gauge("disk_capacity_total_mb", "MegaBytes", "Size of the disk.", disk.capacity_bytes >> 20)
            .gauge(
                "disk_capacity_avail_mb",
                "MegaBytes",
                "Free space of the disk.",
                disk.available_bytes >> 20,
            )
            .gauge("log_bytes", "Bytes", "Size of the mutation log.", disk.log.stats().bytes);
    }
    for (dir, _) in shell.left_out(&state.disks) {
        all.disk(dir.tag(), &dir.path().display().to_string())
            .gauge("disk_capacity_total_mb", "MegaBytes", "Size of the disk.", 0_u64)
            .gauge("disk_capacity_avail_mb", "MegaBytes", "Free space of the disk.", 0_u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_operations() {
        for ((requests, bytes), op) in OPS.into_iter().zip(Op::ALL) {
            assert_eq!(
                (requests, bytes),
                (&*format!("{}_requests", op.name()), &*format!("{}_bytes", op.name()))
            );
        }
    }
}
