//! Dense `u32` ids and the arenas of named entries that they index.
//!
//! Invariant: an id is only ever made by the arena that owns the entry, so indexing cannot fail within one module. Entries
//! keep the names that they came with, so an arena finds them by a map; of two equal names, which only the verifier may
//! ever see, it finds the first.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// A dense id: an index into one [`Arena`].
pub trait Id: Copy + Eq + Ord + fmt::Debug {
    /// The id of entry `index`.
    fn new(index: usize) -> Self;
    /// The entry's index.
    fn index(self) -> usize;
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(u32);

        impl Id for $name {
            fn new(index: usize) -> Self {
                $name(u32::try_from(index).expect("an arena never holds 2^32 entries"))
            }

            fn index(self) -> usize {
                self.0 as usize
            }
        }
    )*};
}

ids! {
    /// A value of one graph.
    ValueId,
    /// A weight of the module.
    WeightId,
    /// A state buffer of the module.
    StateId
}

/// What an arena holds: something with a name of its own.
pub trait Named {
    /// The name, without its sigil.
    fn name(&self) -> &str;
}

/// A growing table of named entries, indexed by its own id type.
#[derive(Clone, Debug)]
pub struct Arena<I, T> {
    items: Vec<T>,
    names: HashMap<String, I>,
    /// For a name that was wanted again: a number that all numbered variants of it so far are below.
    numbers: HashMap<String, u32>,
}

impl<I, T> Default for Arena<I, T> {
    fn default() -> Self {
        Arena { items: Vec::new(), names: HashMap::new(), numbers: HashMap::new() }
    }
}

impl<I, T: PartialEq> PartialEq for Arena<I, T> {
    /// Whether the entries are equal; how they got their names does not count.
    fn eq(&self, other: &Self) -> bool {
        self.items == other.items
    }
}

impl<I: Id, T: Named> Arena<I, T> {
    /// Adds an entry.
    pub fn push(&mut self, item: T) -> I {
        let id = I::new(self.items.len());
        self.names.entry(item.name().to_owned()).or_insert(id);
        self.items.push(item);
        id
    }

    /// The entry of that name.
    pub fn find(&self, name: &str) -> Option<I> {
        self.names.get(name).copied()
    }

    /// `wanted`, or the next of `wanted.1`, `wanted.2`, … that no entry has and `taken` does not claim.
    pub fn fresh_name(&mut self, wanted: &str, taken: impl Fn(&str) -> bool) -> String {
        let taken = |name: &str, names: &HashMap<String, I>| names.contains_key(name) || taken(name);
        if !taken(wanted, &self.names) {
            return wanted.to_owned();
        }
        let first = self.numbers.get(wanted).copied().unwrap_or(1);
        let numbered = (first..).map(|i| (i, format!("{wanted}.{i}")));
        let (number, name) = numbered.into_iter().find(|(_, n)| !taken(n, &self.names)).expect("some number is free");
        self.numbers.insert(wanted.to_owned(), number + 1);
        name
    }
}

impl<I: Id, T> Arena<I, T> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// All entries with their ids, in order of creation.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (I, &T)> + ExactSizeIterator {
        self.items.iter().enumerate().map(|(i, t)| (I::new(i), t))
    }

    /// All entries, mutable.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (I, &mut T)> {
        self.items.iter_mut().enumerate().map(|(i, t)| (I::new(i), t))
    }

    /// A side table: one `value` per entry.
    pub fn side_table<U: Clone>(&self, value: U) -> SideTable<I, U> {
        SideTable { items: vec![value; self.items.len()], ids: PhantomData }
    }
}

impl<I: Id, T> Index<I> for Arena<I, T> {
    type Output = T;
    fn index(&self, id: I) -> &T {
        &self.items[id.index()]
    }
}

impl<I: Id, T> IndexMut<I> for Arena<I, T> {
    fn index_mut(&mut self, id: I) -> &mut T {
        &mut self.items[id.index()]
    }
}

/// Facts about the entries of an arena, kept beside it.
#[derive(Clone, Debug)]
pub struct SideTable<I, T> {
    items: Vec<T>,
    ids: PhantomData<I>,
}

impl<I: Id, T> Index<I> for SideTable<I, T> {
    type Output = T;
    fn index(&self, id: I) -> &T {
        &self.items[id.index()]
    }
}

impl<I: Id, T> IndexMut<I> for SideTable<I, T> {
    fn index_mut(&mut self, id: I) -> &mut T {
        &mut self.items[id.index()]
    }
}
