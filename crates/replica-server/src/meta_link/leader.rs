//! Which meta-server to ask: the leader as far as known, else each in turn.

use pegasus_types::Node;

#[derive(Debug)]
pub struct Leader {
    metas: Vec<Node>,
    at: usize,
    told: Option<Node>,
}

impl Leader {
    /// `metas` is not empty (checked with the configuration).
    pub fn new(metas: Vec<Node>) -> Self {
        Self { metas, at: 0, told: None }
    }

    pub fn current(&self) -> Option<&Node> {
        self.told.as_ref().or_else(|| self.metas.get(self.at))
    }

    /// `asked` did not answer: try another one. Late failures of a node that is no longer asked change nothing.
    pub fn failed(&mut self, asked: &Node) {
        if self.current() != Some(asked) {
            return;
        }
        if self.told.take().is_none() || self.metas.get(self.at) == Some(asked) {
            self.at = (self.at + 1) % self.metas.len().max(1);
        }
    }

    /// `asked` says that it is not the leader, and perhaps who is.
    pub fn redirected(&mut self, asked: &Node, leader: Option<Node>) {
        match leader {
            Some(leader) if leader != *asked => self.told = Some(leader),
            _ => self.failed(asked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(port: u16) -> Node {
        Node::new(format!("127.0.0.1:{port}"))
    }

    #[test]
    fn follows_hints_and_goes_round() {
        let mut leader = Leader::new(vec![node(1), node(2), node(3)]);
        assert_eq!(leader.current(), Some(&node(1)));
        leader.failed(&node(1));
        leader.failed(&node(1));
        assert_eq!(leader.current(), Some(&node(2)), "a late failure moves nothing");
        leader.redirected(&node(2), Some(node(1)));
        assert_eq!(leader.current(), Some(&node(1)));
        leader.failed(&node(1));
        assert_eq!(leader.current(), Some(&node(2)));
        leader.redirected(&node(2), None);
        assert_eq!(leader.current(), Some(&node(3)));
        leader.redirected(&node(3), Some(node(3)));
        assert_eq!(leader.current(), Some(&node(1)));
    }
}
