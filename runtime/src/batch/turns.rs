//! Whose turn it is: classes of priority, and in each of them fair queueing over rows.
//!
//! A step is filled up to the knee, behind which a row costs no less beside others than without them; a pass whose turn it is
//! may reach beyond it. Invariant: those of one class get as many rows as each other over time, whatever the size of their
//! passes, a class that others go before has its turn after sixteen steps for each of them, and so nobody waits forever. It
//! decides when something is computed, never what.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Rows of a turn. A smaller pass counts as so many, since whoever wants it cannot use more.
const TURN: usize = 32;

/// Times that a class waits to be put before the next one.
const AGE: u32 = 16;

/// What a sequence wants of the next step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub(super) rows: usize,
    pub(super) spans: usize,
    /// Whether it reads a prompt, which goes behind passes that others see something of.
    pub(super) prefill: bool,
    /// Its class; lower ones go first.
    pub(super) priority: i32,
    /// Rows that it has had since all were served.
    pub(super) used: u64,
}

impl Want {
    fn cost(&self) -> u64 {
        self.rows.max(TURN) as u64
    }
}

/// What a step takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Rows up to which it is filled.
    pub(super) knee: usize,
    /// Most rows.
    pub(super) rows: usize,
    /// Most spans.
    pub(super) spans: usize,
}

/// How often each class has waited for another.
#[derive(Clone, Debug, Default)]
pub(super) struct Ages(BTreeMap<i32, u32>);

impl Ages {
    /// The class of those `present` that goes first; `None` where there is none.
    pub(super) fn first(&self, present: &BTreeSet<i32>) -> Option<i32> {
        let waited = |class: &i32| self.0.get(class).copied().unwrap_or(0);
        let ranks = (0i64..).zip(present);
        let first = ranks.min_by_key(|(rank, class)| (rank - i64::from(waited(class) / AGE), Reverse(waited(class))));
        first.map(|(_, class)| *class)
    }

    /// Notes that `class` went first.
    pub(super) fn served(&mut self, class: i32, present: &BTreeSet<i32>) {
        self.0.retain(|class, _| present.contains(class));
        for other in present {
            let waited = self.0.entry(*other).or_default();
            *waited = if *other == class { 0 } else { waited.saturating_add(1) };
        }
    }
}

/// Chooses who takes part in a step, in order of `wants`, and settles what they have used. Returns the indices, ascending; at
/// least one if anybody wants anything.
pub(super) fn choose(wants: &mut [Want], room: Room, ages: &mut Ages) -> Vec<usize> {
    let present: BTreeSet<i32> = wants.iter().map(|want| want.priority).collect();
    let Some(first) = ages.first(&present) else { return Vec::new() };
    let mut order: Vec<usize> = (0..wants.len()).collect();
    let rank = |want: &Want| (want.priority != first, want.priority, want.used, want.prefill);
    order.sort_by_key(|i| rank(&wants[*i]));
    let least = order.first().map_or(0, |i| wants[*i].used);
    let (mut chosen, mut rows, mut spans) = (Vec::new(), 0, 0);
    for i in order {
        let want = &wants[i];
        let its_turn = want.priority == first && want.used < least + TURN as u64;
        let fits = rows + want.rows <= room.rows && spans + want.spans <= room.spans;
        let fills = rows + want.rows <= room.knee || (its_turn && rows < room.knee);
        // What fits no step is the executor's to refuse.
        if chosen.is_empty() || (fits && fills) {
            (rows, spans) = (rows + want.rows, spans + want.spans);
            chosen.push(i);
        }
    }
    chosen.sort_unstable();
    if chosen.len() == wants.len() {
        // Nobody was kept waiting, so nobody owes anybody anything.
        wants.iter_mut().for_each(|want| want.used = 0);
        *ages = Ages::default();
    } else {
        chosen.iter().for_each(|i| wants[*i].used += wants[*i].cost());
        ages.served(first, &present);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn want(rows: usize) -> Want {
        Want { rows, spans: 1, prefill: false, priority: 0, used: 0 }
    }

    fn wants(rows: &[usize]) -> Vec<Want> {
        rows.iter().map(|rows| want(*rows)).collect()
    }

    fn room(knee: usize, rows: usize) -> Room {
        Room { knee, rows, spans: 64 }
    }

    fn once(mut wants: Vec<Want>, room: Room) -> Vec<usize> {
        choose(&mut wants, room, &mut Ages::default())
    }

    /// Rows that each is served in so many steps, and the largest step.
    fn served(mut wants: Vec<Want>, room: Room, steps: usize) -> (Vec<usize>, usize) {
        let (mut served, mut ages, mut largest) = (vec![0; wants.len()], Ages::default(), 0);
        for _ in 0..steps {
            let chosen = choose(&mut wants, room, &mut ages);
            assert!(!chosen.is_empty());
            largest = largest.max(chosen.iter().map(|i| wants[*i].rows).sum());
            chosen.iter().for_each(|i| served[*i] += wants[*i].rows);
        }
        (served, largest)
    }

    #[test]
    fn a_step_is_filled_up_to_the_knee() {
        assert_eq!(once(wants(&[4, 4, 4]), room(16, 136)), [0, 1, 2]);
        assert_eq!(once(wants(&[4; 9]), room(16, 136)), [0, 1, 2, 3]);
        assert_eq!(once(wants(&[4, 32, 4]), room(16, 136)), [0, 1], "whose turn it is may reach beyond");
        assert_eq!(once(wants(&[4, 32, 4]), room(16, 32)), [0, 2], "but not beyond the largest step");
        assert_eq!(once(wants(&[32, 32]), room(16, 136)), [0]);
        assert_eq!(once(wants(&[4, 4, 4]), Room { spans: 2, ..room(16, 136) }), [0, 1]);
        assert_eq!(once(wants(&[]), room(16, 136)), [0; 0]);
    }

    #[test]
    fn reading_a_prompt_goes_behind_what_others_wait_for() {
        let prefill = Want { prefill: true, ..want(16) };
        let all = [vec![prefill], wants(&[4; 4])].concat();
        assert_eq!(once(all.clone(), room(16, 136)), [1, 2, 3, 4]);
        assert_eq!(once(all[..4].to_vec(), room(16, 136)), [0, 1, 2, 3], "into what they leave");
        // It has its turn in every second step, when all of the others have had one.
        assert_eq!(served(all, room(16, 136), 400).0, [200 * 16, 800, 800, 800, 800]);
    }

    #[test]
    fn one_that_fits_no_step_is_still_given_to_the_executor() {
        assert_eq!(once(wants(&[200]), room(16, 128)), [0]);
    }

    #[test]
    fn small_and_large_passes_get_the_same_share_of_rows() {
        let (served, _) = served(wants(&[4, 128, 32, 4, 128]), room(16, 128), 4000);
        assert!(served[0].abs_diff(served[3]) <= 4 && served[1].abs_diff(served[4]) <= 128, "{served:?}");
        // A pass of 128 rows is four turns, of which the others have one each.
        let turns = [served[0] / 4, served[1] / 32, served[2] / 32];
        assert!(turns.iter().all(|n| n.abs_diff(turns[0]) <= turns[0] / 50), "{turns:?}");
    }

    #[test]
    fn a_short_pass_does_not_wait_for_long_ones_in_turn() {
        let (served, largest) = served(wants(&[4, 512, 512]), room(16, 1024), 4200);
        assert!(largest <= 512 + 4, "never with both");
        assert!(served[0] / 4 >= 15 * (served[1] / 512), "{served:?}");
    }

    #[test]
    fn lower_numbers_go_first_and_others_are_not_forgotten() {
        let of = |priority: i32, rows: usize| Want { priority, ..want(rows) };
        assert_eq!(once(vec![of(5, 16), of(-5, 16), of(0, 16)], room(16, 136)), [1]);
        assert_eq!(once(vec![of(5, 4), of(-5, 8), of(0, 16)], room(16, 136)), [0, 1], "what is left is filled");
        let (served, _) = served(vec![of(0, 16), of(9, 16), of(i32::MAX, 16)], room(16, 136), 1700);
        assert!(served[0] > 10 * served[1] && served[1] >= served[2] && served[2] >= 1700 / 40 * 16, "{served:?}");
    }

    #[test]
    fn classes_that_went_are_no_longer_waited_for() {
        let mut ages = Ages::default();
        let both = BTreeSet::from([1, 2]);
        (0..AGE).for_each(|_| ages.served(1, &both));
        assert_eq!(ages.first(&both), Some(2));
        ages.served(1, &BTreeSet::from([1]));
        assert_eq!(ages.first(&both), Some(1));
        assert_eq!(ages.first(&BTreeSet::new()), None);
    }

    proptest! {
        #[test]
        fn nobody_waits_forever(
            of in proptest::collection::vec((1usize..128, 0i32..3, any::<bool>()), 1..40),
            knee in 1usize..140,
        ) {
            let wants: Vec<Want> =
                of.iter().map(|&(rows, priority, prefill)| Want { priority, prefill, ..want(rows) }).collect();
            let count = wants.len();
            let (served, largest) = served(wants, room(knee, 128), 200 * count);
            prop_assert!(served.iter().all(|&n| n > 0), "{:?}", served);
            prop_assert!(largest <= 128);
        }
    }
}
