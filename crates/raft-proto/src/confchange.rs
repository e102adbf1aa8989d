//! Membership changes of both generations, seen as the newer one.

use std::borrow::Cow;

use crate::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};

/// A membership change of either generation.
pub trait ConfChangeI {
    /// As the newer generation.
    fn into_v2(self) -> ConfChangeV2;
    /// A view of it as the newer generation.
    fn as_v2(&self) -> Cow<'_, ConfChangeV2>;
    /// Itself, if it is of the older generation.
    fn as_v1(&self) -> Option<&ConfChange>;
}

impl ConfChangeI for ConfChange {
    fn into_v2(mut self) -> ConfChangeV2 {
        let change = new_conf_change_single(self.node_id, self.change_type());
        ConfChangeV2 { changes: vec![change], context: self.take_context(), ..ConfChangeV2::default() }
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Owned(self.clone().into_v2())
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        Some(self)
    }
}

impl ConfChangeI for ConfChangeV2 {
    fn into_v2(self) -> ConfChangeV2 {
        self
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Borrowed(self)
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        None
    }
}

impl ConfChangeV2 {
    /// Whether the change needs joint consensus, and if so whether that is left automatically.
    pub fn enter_joint(&self) -> Option<bool> {
        match self.transition() {
            ConfChangeTransition::Auto if self.changes.len() <= 1 => None,
            ConfChangeTransition::Auto | ConfChangeTransition::Implicit => Some(true),
            ConfChangeTransition::Explicit => Some(false),
        }
    }

    /// The empty change, which ends joint consensus.
    pub fn leave_joint(&self) -> bool {
        self.transition() == ConfChangeTransition::Auto && self.changes.is_empty()
    }
}

/// One change of several.
pub fn new_conf_change_single(node_id: u64, kind: ConfChangeType) -> ConfChangeSingle {
    ConfChangeSingle { node_id, change_type: kind as i32 }
}

/// Compares the members, whatever their order.
pub fn conf_state_eq(a: &ConfState, b: &ConfState) -> bool {
    fn same(a: &[u64], b: &[u64]) -> bool {
        let (mut a, mut b) = (a.to_vec(), b.to_vec());
        a.sort_unstable();
        b.sort_unstable();
        a == b
    }
    a.auto_leave == b.auto_leave
        && same(&a.voters, &b.voters)
        && same(&a.learners, &b.learners)
        && same(&a.voters_outgoing, &b.voters_outgoing)
        && same(&a.learners_next, &b.learners_next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conf_states_are_compared_as_sets() {
        let state = |voters: &[u64]| ConfState { voters: voters.to_vec(), ..ConfState::default() };
        assert!(conf_state_eq(&state(&[1, 2, 3]), &state(&[3, 1, 2])));
        assert!(!conf_state_eq(&state(&[1, 2]), &state(&[1, 2, 3])));
    }

    #[test]
    fn one_change_needs_no_joint_consensus() {
        let change = ConfChange { node_id: 7, ..ConfChange::default() }.into_v2();
        assert_eq!(change.enter_joint(), None);
        assert!(!change.leave_joint());
        assert!(ConfChangeV2::default().leave_joint());
    }
}
