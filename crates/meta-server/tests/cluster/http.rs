use crate::world::*;

#[test]
fn the_port_speaks_http_too() {
    local(async {
        let world = World::start(3, TEMP).await;
        world.healthy("temp", 3).await;
        for (path, status, part) in [
            ("/livez", 200, "ok"),
            ("/readyz", 200, "ok"),
            ("/metrics", 200, "alive_replica_servers{"),
            ("/metrics", 200, "healthy_partitions{"),
            ("/config?name=cluster_root", 200, "/pegasus/test"),
            ("/meta/cluster", 200, "\"meta_function_level\":\"steady\""),
            ("/meta/nodes", 200, "\"alive_node_count\":\"3\""),
            ("/meta/nodes?detail", 200, "\"replica_count\":\"4\""),
            ("/meta/apps", 200, "\"status\":\"AVAILABLE\""),
            ("/meta/apps?detail", 200, "\"fully_healthy\":\"4\""),
            ("/meta/app?name=temp", 200, "\"partition_count\":\"4\""),
            ("/meta/app?name=temp&detail", 200, "\"replica_count\":\"3/3\""),
            ("/meta/app", 400, "name should be specified"),
            ("/meta/app?name=x", 404, "table not found: \"x\""),
            ("/meta/app_envs?name=temp", 200, "{}"),
            ("/meta/wrong", 404, "service not found"),
        ] {
            let answer = http_get(world.meta.as_str(), path).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
            assert!(answer.contains(part), "{path}: {answer}");
        }
    });
}

#[test]
fn what_the_leader_waits_for_is_shown() {
    local(async {
        let mut world = World::start(3, TEMP).await;
        world.healthy("temp", 3).await;
        assert_eq!(world.command("meta.work").await, "[]");
        let whole = http_get(world.meta.as_str(), "/meta/app?name=temp&detail").await;
        assert_eq!(whole.matches("\"note\":\"\"").count(), 4, "{whole}");
        world.replicas.pop();
        let work = until("the leader waits for the third", async || {
            let work: serde_json::Value = serde_json::from_str(&world.command("meta.work").await).unwrap();
            (work.as_array().unwrap().len() == 4).then_some(work)
        })
        .await;
        for (index, work) in work.as_array().unwrap().iter().enumerate() {
            assert_eq!((&work["gpid"], &work["table"]), (&format!("1.{index}").into(), &"temp".into()));
            assert!(!work["note"].as_str().unwrap().is_empty(), "{work}");
        }
        let shown = http_get(world.meta.as_str(), "/meta/app?name=temp&detail").await;
        assert!(shown.contains("\"note\":\"") && !shown.contains("\"note\":\"\""), "{shown}");
    });
}

#[test]
fn settings_of_the_leader_change_while_it_leads() {
    local(async {
        let world = World::start(1, "").await;
        for (path, part) in [
            ("/config?name=replica_assign_delay_ms_for_dropouts", "flag_tag::FT_MUTABLE"),
            ("/updateConfig?replica_assign_delay_ms_for_dropouts=77", "{\"update_status\":\"ERR_OK\"}"),
            ("/config?name=replica_assign_delay_ms_for_dropouts", "\"value\":\"77\""),
            (
                "/updateConfig?node_live_percentage_threshold_for_update=101",
                "{\"update_status\":\"ERR_INVALID_PARAMETERS: 101 is more than 100\"}",
            ),
            ("/updateConfig?add_secondary_max_count_for_one_node=", "ERR_INVALID_PARAMETERS"),
            ("/updateConfig?add_secondary_max_count_for_one_node=3", "ERR_OK"),
            (
                "/updateConfig?cluster_root=/x",
                "ERR_INVALID_PARAMETERS: cluster_root is read at the start only",
            ),
        ] {
            let answer = http_get(world.meta.as_str(), path).await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(part), "{path}: {answer}");
        }
        assert_eq!(world.command("meta.lb.assign_delay_ms").await, "77");
        assert_eq!(world.command("meta.lb.add_secondary_max_count_for_one_node").await, "3");
    });
}
