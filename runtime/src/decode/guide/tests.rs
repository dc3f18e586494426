//! What a guide chooses, beside everything that could have been chosen.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::constrain::{Grammar, Vocabulary};
use crate::decode::policy::{ConfidenceStage, Reveal};

/// The mask, tokens with a text, and two that end it.
const TOKENS: [&str; 9] = ["", "a", "b", "ab", "c", "ba", "abc", "", ""];
const STOPS: [i32; 2] = [7, 8];
const MASK: i32 = 0;

/// Languages, as an expression and as a predicate.
type Predicate = fn(&str) -> bool;
const LANGUAGES: [(&str, Predicate); 6] = [
    ("(ab)*", |text| text.replace("ab", "").is_empty()),
    ("a+b?", |text| {
        let letters = text.strip_suffix('b').unwrap_or(text);
        !letters.is_empty() && letters.bytes().all(|b| b == b'a')
    }),
    ("[abc]{0,6}", |text| text.len() <= 6),
    ("abcab|bac?|c", |text| ["abcab", "bac", "ba", "c"].contains(&text)),
    ("[ab]*c[ab]*", |text| text.matches('c').count() == 1),
    ("(a|b){3,}", |text| text.len() >= 3 && !text.contains('c')),
];

fn constraint(expression: &str) -> Arc<Constraint> {
    let tokens = (0..).zip(TOKENS.iter().map(|text| text.as_bytes()));
    let vocabulary = Arc::new(Vocabulary::of(tokens.filter(|(_, bytes)| !bytes.is_empty())));
    Arc::new(Constraint::new(&Grammar::Regex(expression.into()), &vocabulary).unwrap())
}

fn policy() -> DecodePolicy {
    DecodePolicy { stop_ids: STOPS.to_vec(), ..DecodePolicy::greedy(MASK, 4) }
}

/// The text of tokens if it is ended as it must be: whether it is, and the text.
fn ended(tokens: &[i32]) -> Option<(bool, String)> {
    let stop = tokens.iter().position(|id| STOPS.contains(id));
    let (text, end) = tokens.split_at(stop.unwrap_or(tokens.len()));
    let fits = !tokens.contains(&MASK) && end.iter().all(|id| STOPS.contains(id));
    fits.then(|| (stop.is_some(), text.iter().map(|&id| TOKENS[id as usize]).collect()))
}

/// Whether these tokens can be completed with at most `left` more: tried out.
fn fits(tokens: &[i32], left: usize, is_allowed: Predicate) -> bool {
    match ended(tokens) {
        None => false,
        Some((true, text)) => is_allowed(&text),
        Some((false, text)) => completes(&text, left, is_allowed),
    }
}

fn completes(text: &str, left: usize, is_allowed: Predicate) -> bool {
    let more =
        || TOKENS.iter().filter(|t| !t.is_empty()).any(|t| completes(&format!("{text}{t}"), left - 1, is_allowed));
    is_allowed(text) || (left > 0 && more())
}

/// All fillings of the masks.
fn fillings(ids: &[i32]) -> Vec<Vec<i32>> {
    ids.iter().fold(vec![Vec::new()], |all, &id| {
        let choices = if id == MASK { 0..TOKENS.len() as i32 } else { id..id + 1 };
        all.iter().flat_map(|begin| choices.clone().map(|id| [&begin[..], &[id]].concat())).collect()
    })
}

/// A case: a language, what is decided of up to four positions, how many remain, and logits.
#[derive(Clone, Debug)]
struct Case {
    language: usize,
    ids: Vec<i32>,
    left: usize,
    logits: Vec<Vec<f32>>,
}

fn cases() -> impl Strategy<Value = Case> {
    let cell = prop_oneof![3 => Just(MASK), 1 => 1i32..9];
    let row = proptest::collection::vec((-80i32..80).prop_map(|x| x as f32 / 8.0), TOKENS.len());
    let rows = proptest::collection::vec(row, 4);
    (0..LANGUAGES.len(), proptest::collection::vec(cell, 1..5), 0usize..4, rows)
        .prop_map(|(language, ids, left, logits)| Case { language, ids, left, logits })
}

impl Case {
    fn masked(&self) -> Vec<usize> {
        (0..self.ids.len()).filter(|&at| self.ids[at] == MASK).collect()
    }

    fn score(&self, filling: &[i32]) -> f64 {
        self.masked().iter().zip(&self.logits).map(|(&at, row)| f64::from(row[filling[at] as usize])).sum()
    }

    /// All fillings that are allowed.
    fn allowed(&self) -> Vec<Vec<i32>> {
        let is_allowed = LANGUAGES[self.language].1;
        fillings(&self.ids).into_iter().filter(|filling| fits(filling, self.left, is_allowed)).collect()
    }

    /// What the guide makes of it.
    fn run(&self, policy: &DecodePolicy, needs: Needs, seed: u64) -> Result<Vec<Drawn>, DecodeError> {
        self.told(policy, needs, seed).map(|(drawn, _)| drawn)
    }

    /// The same, and the probability of each token in the law that it is told to come from.
    fn told(&self, policy: &DecodePolicy, needs: Needs, seed: u64) -> Result<(Vec<Drawn>, Vec<f64>), DecodeError> {
        let masked = self.masked();
        let end = self.ids.len() + self.left;
        let constraint = constraint(LANGUAGES[self.language].0);
        let mut guide = Guide::new(constraint, policy, TOKENS.len(), 0..end);
        let noise = Noise::Seeded(seed);
        let how = Choosing { policy, choice: Choice::AsPolicy, needs, noise: &noise, pass: 0, tells: true };
        let rows = self.logits.iter().map(Vec::as_slice);
        let mut sampler = Sampler::default();
        let drawn = guide.choose(&mut sampler, &self.ids, &masked, rows, &how)?;
        let laws = guide.laws().chunks_exact(TOKENS.len()).map(|row| {
            let law = if policy.is_greedy() { sampler.plain_law(row, policy) } else { sampler.law(row, policy) };
            law.unwrap()
        });
        let probs: Vec<f64> = laws.zip(&drawn).map(|(law, drawn)| law.prob(drawn.stats.best)).collect();
        assert_eq!(probs.len(), drawn.len());
        Ok((drawn, probs))
    }
}

fn run_cases(cases_tried: u32, check: impl Fn(Case) -> Result<(), TestCaseError>) {
    let config = Config { cases: cases_tried, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&cases(), check).unwrap();
}

#[test]
fn the_best_allowed_filling_is_chosen_and_read_from_its_law() {
    let policy = DecodePolicy { confidence_stage: ConfidenceStage::BeforeFilters, ..policy() };
    run_cases(600, |case| {
        let (masked, allowed) = (case.masked(), case.allowed());
        prop_assume!(!masked.is_empty());
        let chosen = case.told(&policy, Needs::ALL, 0);
        if allowed.is_empty() {
            prop_assert!(chosen.is_err());
            return Ok(());
        }
        let (chosen, told) = chosen.unwrap();
        for (drawn, told) in chosen.iter().zip(told) {
            prop_assert!((f64::from(drawn.stats.prob) - told).abs() < 1e-4);
        }
        let mut filling = case.ids.clone();
        masked.iter().zip(&chosen).for_each(|(&at, drawn)| filling[at] = drawn.stats.best);
        prop_assert!(allowed.contains(&filling), "{:?}", filling);
        let best = allowed.iter().map(|other| case.score(other)).fold(f64::NEG_INFINITY, f64::max);
        prop_assert!((case.score(&filling) - best).abs() < 1e-9, "{:?}", filling);

        let weight = |filling: &Vec<i32>| (case.score(filling) - best).exp();
        let whole: f64 = allowed.iter().map(weight).sum();
        for (&at, drawn) in masked.iter().zip(&chosen) {
            let law = |token: i32| allowed.iter().filter(|f| f[at] == token).map(weight).sum::<f64>() / whole;
            let mut probs: Vec<f64> = (0..TOKENS.len() as i32).map(law).collect();
            let entropy: f64 = probs.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
            prop_assert!((f64::from(drawn.stats.prob) - law(drawn.stats.best)).abs() < 1e-4);
            prop_assert!((f64::from(drawn.stats.entropy) - entropy).abs() < 1e-3);
            prop_assert!((f64::from(drawn.entropy) - entropy).abs() < 1e-3);
            probs.sort_by(|a, b| b.total_cmp(a));
            prop_assert!((f64::from(drawn.stats.margin) - (probs[0] - probs[1])).abs() < 1e-4);
        }
        Ok(())
    });
}

#[test]
fn fillings_are_drawn_from_the_law_of_all_that_are_allowed() {
    const DRAWS: u64 = 4000;
    for (language, ids, left, temperature) in
        [(0, vec![0, 0, 0], 1, 0.7), (2, vec![0, 1, 0], 0, 1.5), (3, vec![0, 0], 1, 1.0), (4, vec![0, 0, 4, 0], 0, 3.0)]
    {
        let row = |at: i32| (0..TOKENS.len() as i32).map(|id| ((id * 7 + at * 5) % 11) as f32 / 4.0).collect();
        let case = Case { language, ids, left, logits: (0..4).map(row).collect() };
        let policy = DecodePolicy { temperature, ..policy() };
        let allowed = case.allowed();
        let weight = |filling: &Vec<i32>| (case.score(filling) / f64::from(temperature)).exp();
        let whole: f64 = allowed.iter().map(weight).sum();
        let mut counts = vec![0u32; allowed.len()];
        for seed in 0..DRAWS {
            let mut filling = case.ids.clone();
            let (chosen, told) = case.told(&policy, Needs::NOTHING, seed).unwrap();
            case.masked().iter().zip(chosen).for_each(|(&at, drawn)| filling[at] = drawn.stats.best);
            // What the tokens come from, one given those before it, is together the law of the filling.
            let (product, joint) = (told.iter().product::<f64>(), weight(&filling) / whole);
            assert!((product / joint - 1.0).abs() < 1e-3, "{product}, {joint}");
            counts[allowed.iter().position(|other| *other == filling).unwrap()] += 1;
        }
        for (filling, count) in allowed.iter().zip(counts) {
            let expected = weight(filling) / whole * DRAWS as f64;
            let deviation = (f64::from(count) - expected).abs() / expected.max(1.0).sqrt();
            assert!(deviation < 5.0, "{language} {filling:?}: {count} instead of {expected}");
        }
    }
}

#[test]
fn tiny_weights_count() {
    // Only tokens are allowed that every row likes least, and the temperature makes that e^-40000.
    let logits = vec![vec![200.0, -200.0, -400.0, -400.0, 200.0, 200.0, 200.0, -400.0, -400.0]; 4];
    let case = Case { language: 1, ids: vec![0, 0, 0, 0], left: 0, logits };
    let policy = DecodePolicy { temperature: 0.01, ..policy() };
    let chosen = case.run(&policy, Needs::ALL, 3).unwrap();
    let tokens: Vec<i32> = chosen.iter().map(|drawn| drawn.stats.best).collect();
    assert!(case.allowed().contains(&tokens), "{tokens:?}");
    assert!(chosen.iter().all(|drawn| drawn.stats.prob > 0.99));
}

mod whole;
