//! Pages of cache rows that later requests may begin with: which tokens each is of, where it lies, and which goes when room
//! is needed.
//!
//! A page is known by its tokens and the page before it, compared and not merely hashed, so it is found only behind the very
//! tokens that its rows were computed behind. Whatever else rows depend on, the artifact and the type of the caches, is that
//! of the one executor whose caches these are. Invariant: a page goes before the page that it stands behind, so whatever is
//! found from the beginning is whole; and there are never more pages than were reserved. It moves no rows: who keeps a page
//! copies them, blocks that are still being decoded never among them.

use std::collections::HashMap;

use crate::exec::CacheRow;

/// Tokens of a page at least: copies of fewer rows cost more than they save.
pub(super) const PAGE: usize = 16;

/// Where pages lie: in slots that no sequence uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shelf {
    /// Tokens of a page.
    pub(super) page: usize,
    /// Pages in a slot.
    per_slot: usize,
    /// Pages.
    pages: usize,
    /// Its first slot.
    pub(super) first: usize,
}

impl Shelf {
    /// A shelf of `rows` rows or a few more, from slot `first` on, for rows that are copied by multiples of `unit`; `None`
    /// where a page is longer than a slot.
    pub(super) fn new(rows: usize, first: usize, unit: usize, max_seq: usize) -> Option<Self> {
        let page = PAGE.checked_next_multiple_of(unit)?;
        let per_slot = max_seq.checked_div(page).filter(|n| *n > 0)?;
        Some(Self { page, per_slot, pages: rows.div_ceil(page), first })
    }

    /// Slots that it takes.
    pub(super) fn slots(&self) -> usize {
        self.pages.div_ceil(self.per_slot)
    }

    /// Rows that it holds.
    pub(super) fn rows(&self) -> usize {
        self.pages.saturating_mul(self.page)
    }

    fn row(&self, place: usize) -> CacheRow {
        CacheRow { slot: self.first + place / self.per_slot, row: place % self.per_slot * self.page }
    }
}

/// See the module. A page's place is its number on the shelf.
pub(super) struct Pages {
    shelf: Shelf,
    places: Vec<Option<Page>>,
    known: HashMap<Name, usize>,
    /// Goes on with every request that uses pages.
    now: u64,
}

/// The place of the page before, and the tokens.
type Name = (Option<usize>, Box<[i32]>);

struct Page {
    name: Name,
    /// Pages that stand behind it.
    behind: usize,
    used: u64,
}

impl Pages {
    pub(super) fn new(shelf: Shelf) -> Self {
        Self { shelf, places: Vec::new(), known: HashMap::new(), now: 0 }
    }

    /// Rows of the pages that are kept.
    pub(super) fn rows(&self) -> usize {
        self.known.len() * self.shelf.page
    }

    /// Tokens of a page.
    pub(super) fn page(&self) -> usize {
        self.shelf.page
    }

    /// Where the pages lie that `ids` begin with, in order; they have been used now.
    pub(super) fn find(&mut self, ids: &[i32]) -> Vec<CacheRow> {
        self.now += 1;
        let (mut before, mut rows) = (None, Vec::new());
        for tokens in ids.chunks_exact(self.shelf.page) {
            let Some(place) = self.use_page(&(before, tokens.into())) else { break };
            before = Some(place);
            rows.push(self.shelf.row(place));
        }
        rows
    }

    /// Keeps the pages of `ids`, of which the first `kept` were kept before. `copy` is given the first row of each new page
    /// in the sequence and its place. Returns how many are kept; `None` where room was needed for others, since a sequence
    /// that copied its pages again and again would only push out others in turn.
    ///
    /// # Errors
    /// Those of `copy`; its page is not kept.
    pub(super) fn keep<E>(
        &mut self,
        ids: &[i32],
        kept: usize,
        mut copy: impl FnMut(usize, CacheRow) -> Result<(), E>,
    ) -> Result<Option<usize>, E> {
        self.now += 1;
        let (mut before, mut count) = (None, 0);
        for tokens in ids.chunks_exact(self.shelf.page) {
            let name = (before, tokens.into());
            let place = match self.use_page(&name) {
                Some(place) => place,
                None if count < kept => return Ok(None),
                None => {
                    let Some(place) = self.room() else { return Ok(None) };
                    copy(count * self.shelf.page, self.shelf.row(place))?;
                    self.put(place, name);
                    place
                }
            };
            before = Some(place);
            count += 1;
        }
        Ok(Some(count))
    }

    fn use_page(&mut self, name: &Name) -> Option<usize> {
        let place = *self.known.get(name)?;
        self.page_at(place)?.used = self.now;
        Some(place)
    }

    fn page_at(&mut self, place: usize) -> Option<&mut Page> {
        self.places.get_mut(place)?.as_mut()
    }

    fn put(&mut self, place: usize, name: Name) {
        if let Some(before) = name.0.and_then(|before| self.page_at(before)) {
            before.behind += 1;
        }
        self.known.insert(name.clone(), place);
        self.places[place] = Some(Page { name, behind: 0, used: self.now });
    }

    /// A free place; if there is none, that of the page that nobody has used for longest and no other stands behind. `None`
    /// where all pages are in use by whoever asks.
    fn room(&mut self) -> Option<usize> {
        if let Some(place) = self.places.iter().position(Option::is_none) {
            return Some(place);
        }
        if self.places.len() < self.shelf.pages {
            self.places.push(None);
            return Some(self.places.len() - 1);
        }
        let pages = self.places.iter().enumerate().filter_map(|(place, page)| Some((place, page.as_ref()?)));
        let old = pages.filter(|(_, page)| page.behind == 0 && page.used < self.now);
        let place = old.min_by_key(|(_, page)| page.used)?.0;
        let Page { name, .. } = self.places[place].take()?;
        self.known.remove(&name);
        if let Some(before) = name.0.and_then(|before| self.page_at(before)) {
            before.behind -= 1;
        }
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn pages(count: usize) -> Pages {
        Pages::new(Shelf::new(count * PAGE, 3, 4, 2 * PAGE).unwrap())
    }

    /// Ids of pages that are each of one token.
    fn ids(pages: &[i32]) -> Vec<i32> {
        pages.iter().flat_map(|&token| [token; PAGE]).collect()
    }

    fn keep(pages: &mut Pages, of: &[i32], kept: usize) -> (Option<usize>, Vec<(usize, CacheRow)>) {
        let mut copies = Vec::new();
        let kept = pages.keep(&ids(of), kept, |row, place| {
            copies.push((row, place));
            Ok::<_, Infallible>(())
        });
        (kept.unwrap(), copies)
    }

    #[test]
    fn a_page_is_a_whole_number_of_blocks_and_a_shelf_of_slots() {
        let page = |unit: usize| Shelf::new(100, 0, unit, 64).map(|s| (s.page, s.slots(), s.rows()));
        assert_eq!(page(1), Some((16, 2, 112)), "seven pages, four to a slot");
        assert_eq!(page(4), Some((16, 2, 112)));
        assert_eq!(page(12), Some((24, 3, 120)));
        assert_eq!(page(32), Some((32, 2, 128)));
        assert_eq!(page(65), None, "a block is longer than a slot");
        assert_eq!(page(0), None);
        let shelf = Shelf::new(100, 5, 16, 64).unwrap();
        assert_eq!(shelf.row(0), CacheRow { slot: 5, row: 0 });
        assert_eq!(shelf.row(6), CacheRow { slot: 6, row: 32 });
    }

    #[test]
    fn what_begins_alike_is_found_and_copied_once() {
        let mut pages = pages(8);
        let (kept, copies) = keep(&mut pages, &[1, 2, 3], 0);
        assert_eq!((kept, copies.len(), copies[2].0), (Some(3), 3, 2 * PAGE));
        assert_eq!(pages.find(&ids(&[1, 2, 4])), [copies[0].1, copies[1].1]);
        assert!(pages.find(&ids(&[2])).is_empty(), "only behind the same tokens");
        assert!(pages.find(&ids(&[1])[..PAGE - 1]).is_empty(), "whole pages only");
        assert_eq!(keep(&mut pages, &[1, 2, 4], 0).1.len(), 1);
        assert_eq!(pages.find(&ids(&[1, 2, 4])).len(), 3);
        assert_eq!(pages.rows(), 4 * PAGE);
    }

    #[test]
    fn the_page_that_nobody_used_for_longest_goes_and_never_one_that_others_stand_behind() {
        let mut pages = pages(4);
        keep(&mut pages, &[1, 2], 0);
        keep(&mut pages, &[3, 4], 0);
        pages.find(&ids(&[1]));
        // Of 2 and 4 the older goes, not 1, behind which it stands.
        keep(&mut pages, &[5], 0);
        assert_eq!((pages.find(&ids(&[1, 2])).len(), pages.find(&ids(&[3, 4])).len()), (1, 2));
        keep(&mut pages, &[6, 7], 0);
        assert_eq!((pages.find(&ids(&[1])).len(), pages.find(&ids(&[5])).len()), (0, 0));
        assert_eq!(pages.rows(), 4 * PAGE);
    }

    #[test]
    fn a_sequence_longer_than_the_shelf_keeps_its_beginning() {
        let mut pages = pages(3);
        assert_eq!(keep(&mut pages, &[1, 2, 3, 4], 0).0, None);
        assert_eq!(pages.find(&ids(&[1, 2, 3, 4])).len(), 3);
        let mut none = super::tests::pages(0);
        assert_eq!(keep(&mut none, &[1], 0), (None, Vec::new()));
    }

    #[test]
    fn a_sequence_whose_pages_went_keeps_no_more() {
        let mut pages = pages(2);
        assert_eq!(keep(&mut pages, &[1], 0).0, Some(1));
        keep(&mut pages, &[2, 3], 0);
        assert_eq!(keep(&mut pages, &[1, 4], 1), (None, Vec::new()));
        assert_eq!(pages.find(&ids(&[2, 3])).len(), 2);
    }

    #[test]
    fn a_page_whose_copy_fails_is_not_kept() {
        let mut pages = pages(2);
        let failed = pages.keep(&ids(&[1, 2]), 0, |row, _| if row > 0 { Err("device") } else { Ok(()) });
        assert_eq!((failed, pages.rows()), (Err("device"), PAGE));
        assert_eq!(keep(&mut pages, &[1, 3], 1).0, Some(2));
    }

    proptest! {
        /// Against a list of every prefix that was kept: what is found was kept, and lies where it was copied to last.
        #[test]
        fn places_hold_what_they_are_said_to(asked in proptest::collection::vec(
            (any::<bool>(), proptest::collection::vec(0..3i32, 1..6)), 1..60
        )) {
            let mut pages = pages(5);
            let mut rows: HashMap<(usize, usize), Vec<i32>> = HashMap::new();
            for (keeps, ids_of) in asked {
                let before = |page: usize| ids_of[..page].to_vec();
                if keeps {
                    for (row, place) in keep(&mut pages, &ids_of, 0).1 {
                        rows.insert((place.slot, place.row), before(row / PAGE + 1));
                    }
                }
                let found = pages.find(&ids(&ids_of));
                for (page, place) in found.iter().enumerate() {
                    prop_assert!((3..6).contains(&place.slot) && place.row.is_multiple_of(PAGE));
                    prop_assert_eq!(&rows[&(place.slot, place.row)], &before(page + 1));
                }
                prop_assert!(!keeps || found.len() == ids_of.len());
                prop_assert!(pages.rows() <= 5 * PAGE);
            }
        }
    }
}
