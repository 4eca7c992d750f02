use std::collections::BTreeMap;

use pegasus_types::Gpid;

/// When configurations were pushed to this node, to know which answers are older.
///
/// Pushes come in order; an answer travels on another connection and may arrive after what was pushed since. Ballots
/// tell the order of configurations, nothing tells that of a table's settings.
#[derive(Clone, Debug, Default)]
pub struct Pushes {
    count: u64,
    /// By partition: as many as the meta-server has ever told this node.
    last: BTreeMap<Gpid, u64>,
}

/// The moment at which a question was asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked(u64);

impl Pushes {
    pub fn pushed(&mut self, gpid: Gpid) {
        self.count += 1;
        self.last.insert(gpid, self.count);
    }

    pub fn ask(&self) -> Asked {
        Asked(self.count)
    }

    /// Was something pushed since, so that the answer may be older?
    pub fn overtook(&self, asked: Asked, gpid: Gpid) -> bool {
        self.last.get(&gpid).is_some_and(|pushed| *pushed > asked.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_old_for_what_was_pushed_since_the_question() {
        let (one, two) = (Gpid::new(1, 0), Gpid::new(1, 1));
        let mut pushes = Pushes::default();
        pushes.pushed(one);
        let asked = pushes.ask();
        assert!(!pushes.overtook(asked, one) && !pushes.overtook(asked, two));
        pushes.pushed(two);
        assert!(!pushes.overtook(asked, one) && pushes.overtook(asked, two));
        assert!(!pushes.overtook(pushes.ask(), two));
    }
}
