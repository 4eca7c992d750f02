//! Under which host this process is known to others (operations.md D14).

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};

/// Explicit address; else the named interface's IPv4; else the first private IPv4 that is no docker bridge's; else
/// what the own host name resolves to. Loopback only when named.
pub(crate) fn published(explicit: &str, interface: &str) -> Result<String, String> {
    let interfaces = if explicit.is_empty() { interfaces()? } else { Vec::new() };
    match choose(explicit, interface, &interfaces)? {
        Some(host) => Ok(host),
        None => own_name_resolved().ok_or_else(|| {
            "no private IPv4 address found: name an interface, or set explicit_host_address".to_owned()
        }),
    }
}

fn choose(
    explicit: &str,
    interface: &str,
    interfaces: &[(String, Ipv4Addr)],
) -> Result<Option<String>, String> {
    if !explicit.is_empty() {
        return Ok(Some(explicit.to_owned()));
    }
    if !interface.is_empty() {
        let found = interfaces.iter().find(|(name, _)| name == interface);
        let names =
            || interfaces.iter().map(|(name, ip)| format!("{name} ({ip})")).collect::<Vec<_>>().join(", ");
        return match found {
            Some((_, ip)) => Ok(Some(ip.to_string())),
            None => Err(format!("no interface {interface} with an IPv4 address; there are {}", names())),
        };
    }
    let usable = |(name, ip): &&(String, Ipv4Addr)| {
        ip.is_private() && !name.starts_with("docker") && !name.starts_with("br-")
    };
    Ok(interfaces.iter().find(usable).map(|(_, ip)| ip.to_string()))
}

fn interfaces() -> Result<Vec<(String, Ipv4Addr)>, String> {
    let all =
        nix::ifaddrs::getifaddrs().map_err(|error| format!("cannot list the network interfaces: {error}"))?;
    Ok(all.filter_map(|i| Some((i.interface_name, i.address?.as_sockaddr_in()?.ip()))).collect())
}

fn own_name_resolved() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let resolved = (name.trim(), 0u16).to_socket_addrs().ok()?;
    resolved
        .filter_map(|address| match address {
            SocketAddr::V4(v4) if !v4.ip().is_loopback() => Some(v4.ip().to_string()),
            SocketAddr::V4(_) | SocketAddr::V6(_) => None,
        })
        .next()
}

/// Where to listen: a loopback host stays private, any other listens everywhere.
pub(crate) fn listen_ip(host: &str) -> Ipv4Addr {
    match host.parse::<Ipv4Addr>() {
        Ok(ip) if ip.is_loopback() => ip,
        Err(_) if host == "localhost" => Ipv4Addr::LOCALHOST,
        Ok(_) | Err(_) => Ipv4Addr::UNSPECIFIED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_choice() {
        let all: Vec<_> = [
            ("lo", [127, 0, 0, 1]),
            ("docker0", [172, 17, 0, 1]),
            ("eth0", [8, 8, 8, 8]),
            ("eth1", [10, 0, 0, 7]),
        ]
        .into_iter()
        .map(|(name, ip)| (name.to_owned(), Ipv4Addr::from(ip)))
        .collect();
        let chosen = |explicit, interface| choose(explicit, interface, &all).unwrap();
        assert_eq!(chosen("pod-3", "lo"), Some("pod-3".to_owned()));
        assert_eq!(chosen("", "lo"), Some("127.0.0.1".to_owned()));
        assert_eq!(chosen("", ""), Some("10.0.0.7".to_owned()));
        assert_eq!(choose("", "", &all[..3]).unwrap(), None);
        assert!(choose("", "eth9", &all).unwrap_err().contains("eth1 (10.0.0.7)"));
        assert_eq!(published("", "lo").unwrap(), "127.0.0.1");
    }

    #[test]
    fn loopback_stays_private() {
        for (host, ip) in [
            ("127.0.0.9", [127, 0, 0, 9]),
            ("localhost", [127, 0, 0, 1]),
            ("10.1.1.1", [0; 4]),
            ("h", [0; 4]),
        ] {
            assert_eq!(listen_ip(host), Ipv4Addr::from(ip), "{host}");
        }
    }
}
