use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::*;

async fn get(world: &World, path: &str) -> String {
    let mut stream = TcpStream::connect(world.meta.as_str()).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: h\r\naccept: text/plain\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

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
            let answer = get(&world, path).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
            assert!(answer.contains(part), "{path}: {answer}");
        }
    });
}
