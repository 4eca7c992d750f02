//! Roles and copies that move: by themselves, by an operator's order, away from nodes that leave.

use pegasus_rpc::wire::WireGpid;
use pegasus_rpc::wire::meta::*;
use pegasus_rpc::wire::{AdminRequest, AdminResponse, Request, Response};
use pegasus_types::meta::{Proposal, ReplicaStatus};
use pegasus_types::{Decree, ErrorCode, Gpid, Node};

use crate::world::*;

const LIVELY: &str = "meta_function_level_on_start = lively\nlb_interval_ms = 200\n\
                      [meta_server.apps.temp]\npartition_count = 8";

impl World {
    pub async fn command(&self, line: &str) -> String {
        let mut words = line.split(' ').map(str::to_owned);
        let cmd = words.next().unwrap();
        let command = RemoteCommand { cmd, arguments: words.collect() };
        match self.ask(Request::RemoteCommand(command)).await {
            Response::Text(text) => text,
            other => panic!("{other:?}"),
        }
    }

    async fn propose(&self, gpid: Gpid, steps: &[(i32, &Node)]) -> ErrorCode {
        let action = |(kind, node): &(i32, &Node)| {
            let node = Address::of(Some(node));
            ProposalAction { target: node, node, kind: *kind }
        };
        let action_list = steps.iter().map(action).collect();
        let request = BalancerRequest { gpid: WireGpid(gpid), action_list, ..Default::default() };
        match self.admin(AdminRequest::ProposeBalancer(request)).await {
            AdminResponse::ProposeBalancer(response) => response.err.0,
            other => panic!("{other:?}"),
        }
    }

    async fn diagnose(&self, gpid: Gpid) -> Vec<DddPartitionInfo> {
        match self.admin(AdminRequest::DddDiagnose(DddDiagnoseRequest { pid: WireGpid(gpid) })).await {
            AdminResponse::DddDiagnose(response) => response.partitions,
            other => panic!("{other:?}"),
        }
    }

    async fn level(&self, level: i32) -> (ErrorCode, i32) {
        match self.admin(AdminRequest::ControlMeta(ControlMetaRequest { level })).await {
            AdminResponse::ControlMeta(response) => (response.err.0, response.old_level),
            other => panic!("{other:?}"),
        }
    }

    /// (primaries, copies) of a node, as far as all partitions are whole.
    async fn load(&self, node: &Node) -> (u32, u32) {
        let overview = self.overview().await;
        let known = overview.nodes.iter().find(|known| known.node == *node);
        known.map_or((0, 0), |known| (known.primaries, known.primaries + known.secondaries))
    }

    async fn each_has(&self, want: &[(u32, u32)]) {
        until(&format!("nodes hold {want:?}"), async || {
            let mut loads = Vec::new();
            for replica in &self.replicas {
                loads.push(self.load(&replica.node).await);
            }
            loads.sort_unstable();
            (loads == want).then_some(())
        })
        .await;
    }
}

#[test]
fn a_new_node_gets_its_share_and_a_drained_one_is_emptied() {
    local(async {
        let mut world = World::start(3, LIVELY).await;
        world.healthy("temp", 3).await;
        let new = Replica::start(std::slice::from_ref(&world.meta)).await;
        let first = world.replicas[0].node.clone();
        world.replicas.push(new);
        world.each_has(&[(2, 6); 4]).await;
        until("nothing is left to move", async || {
            let info = world.admin(AdminRequest::ClusterInfo(ClusterInfoRequest {})).await;
            let AdminResponse::ClusterInfo(info) = info else { panic!("{info:?}") };
            info.values
                .contains(&r#"{"copy_pri":"0","copy_sec":"0","move_pri":"0","total":"0"}"#.to_owned())
                .then_some(())
        })
        .await;
        assert_eq!(world.command(&format!("meta.drain {first}")).await, "OK");
        world.each_has(&[(0, 0), (2, 8), (3, 8), (3, 8)]).await;
        assert_eq!(world.load(&first).await, (0, 0));
        assert!(world.command("meta.nodes").await.contains("\"RETIRED\""));
        assert_eq!(world.command(&format!("meta.drain {first} off")).await, "OK");
        world.each_has(&[(2, 6); 4]).await;
        assert!(world.command("meta.drain 127.0.0.1:1").await.starts_with("ERR: "));
    });
}

#[test]
fn at_steady_moves_are_shown_and_ordered_one_by_one() {
    local(async {
        let steady = LIVELY.replace("lively", "steady");
        let mut world = World::start(3, &steady).await;
        world.healthy("temp", 3).await;
        let new = Replica::start(std::slice::from_ref(&world.meta)).await;
        let to = new.node.clone();
        world.replicas.push(new);
        let plan = until("six copies and two roles are planned", async || {
            let plan: serde_json::Value =
                serde_json::from_str(&world.command("meta.balance_plan").await).unwrap();
            let kinds: Vec<_> = plan["moves"].as_array()?.iter().map(|m| m["kind"].as_str()).collect();
            let copies = kinds.iter().filter(|kind| **kind == Some("copy_sec")).count();
            (copies == 6 && kinds.len() >= 8).then_some(plan)
        })
        .await;
        assert_eq!(plan["after"][to.as_str()], serde_json::json!({ "primaries": 2, "copies": 6 }));
        assert_eq!(world.load(&to).await, (0, 0), "only shown");

        // One copy and one role by order.
        let gpid = Gpid::new(1, 0);
        let config = world.partition(gpid).await;
        let (primary, from) = (config.primary.clone().unwrap(), &config.secondaries[0]);
        assert_eq!(world.propose(gpid, &[(8, &to), (6, from)]).await, ErrorCode::Ok);
        until("the copy has moved", async || {
            let config = world.partition(gpid).await;
            (config.is_secondary(&to) && !config.is_member(from) && config.member_count() == 3).then_some(())
        })
        .await;
        assert_eq!(world.propose(gpid, &[(5, &primary), (2, &to)]).await, ErrorCode::Ok);
        until("the role has moved", async || world.partition(gpid).await.is_primary(&to).then_some(())).await;
        assert_eq!(world.load(&to).await, (1, 1));
        // What makes no sense is refused.
        for steps in [vec![(5, &to), (2, from)], vec![(5, &primary), (2, &to)], vec![(9, &to)], vec![]] {
            assert_eq!(world.propose(gpid, &steps).await, ErrorCode::InvalidParameters, "{steps:?}");
        }
        assert_eq!(world.propose(gpid, &[(1, from)]).await, ErrorCode::InvalidParameters, "members live");

        assert_eq!(world.level(LEVEL_READ_ONLY).await, (ErrorCode::Ok, 400));
        assert_eq!(world.level(7).await, (ErrorCode::InvalidParameters, 400));
        assert_eq!(world.level(500).await, (ErrorCode::Ok, 400));
        world.each_has(&[(2, 6); 4]).await;
        assert_eq!(world.level(300).await, (ErrorCode::Ok, 500));
        assert_eq!(world.propose(gpid, &[(8, from), (6, &to)]).await, ErrorCode::InvalidParameters);
        assert_eq!(world.create("other", 2, 3).await.0, ErrorCode::StateFreezed);
    });
}

#[test]
fn a_draining_node_loses_its_roles_at_once_and_gets_nothing() {
    local(async {
        let world = World::start(4, LIVELY).await;
        world.healthy("temp", 3).await;
        let leaving = &world.replicas[0];
        assert!(world.load(&leaving.node).await.0 > 0);
        leaving.inner.drains.set(true);
        until("it is primary of nothing and member of nothing", async || {
            (world.load(&leaving.node).await == (0, 0)).then_some(())
        })
        .await;
        let asked: Vec<_> = leaving.inner.proposals.borrow().iter().map(|p| p.proposal.clone()).collect();
        assert!(asked.iter().any(|p| matches!(p, Proposal::HandOver { .. })), "{asked:?}");
        assert!(world.command("meta.nodes").await.contains("\"DRAINING\""));
        // Nobody else is asked to learn in its place: it is awaited.
        for replica in &world.replicas {
            let asked = replica.inner.proposals.borrow();
            let add = asked.iter().find(|p| matches!(p.proposal, Proposal::AddSecondary { .. }));
            assert_eq!(add, None);
        }
        leaving.inner.drains.set(false);
        world.healthy("temp", 3).await;
        world.each_has(&[(2, 6); 4]).await;
    });
}

#[test]
fn numbers_that_operators_set() {
    local(async {
        let world = World::start(1, "add_secondary_max_count_for_one_node = 7").await;
        for (line, want) in [
            ("meta.lb.assign_delay_ms", "600000"),
            ("meta.lb.assign_delay_ms 10", "OK"),
            ("meta.lb.assign_delay_ms", "10"),
            ("meta.lb.assign_delay_ms DEFAULT", "OK"),
            ("meta.lb.assign_delay_ms", "600000"),
            ("meta.lb.assign_delay_ms x", "ERR: \"x\" is not a number"),
            ("meta.live_percentage 101", "ERR: 101 is more than 100"),
            ("meta.live_percentage 30", "OK"),
            ("meta.lb.add_secondary_max_count_for_one_node 0", "OK"),
            ("meta.lb.add_secondary_max_count_for_one_node DEFAULT", "OK"),
            ("meta.lb.add_secondary_max_count_for_one_node", "7"),
            ("meta.lb.assign_secondary_black_list a:1,b:2", "OK"),
            ("meta.lb.assign_secondary_black_list", "a:1,b:2"),
            ("meta.lb.assign_secondary_black_list clear", "OK"),
            ("meta.lb.assign_secondary_black_list", ""),
            ("meta.lb.only_move_primary true", "OK"),
            ("meta.lb.only_primary_balancer", "true"),
            ("meta.lb.ignored_app_list set 1,2", "OK"),
            ("meta.lb.ignored_app_list get", "1,2"),
            (
                "meta.lb.get_balance_operation_count detail",
                r#"{"copy_pri":0,"copy_sec":0,"move_pri":0,"total":0}"#,
            ),
            ("meta.moves", "[]"),
        ] {
            assert_eq!(world.command(line).await, want, "{line}");
        }
        assert!(world.command("meta.lb.nonsense").await.starts_with("unknown command"));
    });
}

/// What a recalled table of the reference, or an operator, leaves: nobody alive, somebody has the data.
#[test]
fn a_partition_whose_members_are_gone_begins_again_by_order() {
    local(async {
        let mut world = World::start(4, TEMP).await;
        world.healthy("temp", 3).await;
        let gpid = Gpid::new(1, 0);
        let config = world.partition(gpid).await;
        let outside = world.replicas.iter().find(|r| !config.is_member(&r.node)).unwrap().node.clone();
        assert_eq!(world.diagnose(Gpid::new(1, -1)).await, []);
        assert_eq!(world.propose(gpid, &[(1, &outside)]).await, ErrorCode::InvalidParameters, "members live");
        let mut held = report(gpid, config.ballot, ReplicaStatus::Inactive);
        held.committed = Decree(3);
        let outsider = world.replica(&outside).inner.clone();
        outsider.held.borrow_mut().insert(gpid, held);
        outsider.report().await;
        world.replicas.retain(|replica| replica.node == outside);
        let found =
            until("all members are found dead", async || world.diagnose(gpid).await.into_iter().next()).await;
        assert_eq!((found.dropped.len(), found.reason.as_str()), (3, "no member is alive"));
        assert!(found.dropped.iter().all(|former| !former.is_alive && former.is_collected));
        assert_eq!(world.propose(gpid, &[(1, &outside)]).await, ErrorCode::Ok);
        let forced = world.partition(gpid).await;
        assert_eq!((forced.ballot.0, forced.primary.as_ref()), (config.ballot.0 + 1, Some(&outside)));
        assert_eq!(forced.last_drops.len(), 3);
    });
}
