//! With a temperature, what is drawn has the verifier's joint law – and the statistic that says so catches every wrong rule
//! that has been printed.
//!
//! The law of the first three tokens after "Tell me a story.", where the verifier is undecided, is enumerated; a chi-square
//! over its cells, as a z score, compares draws with it. Draws of the product come from sessions; those of wrong rules from a
//! loop here, over the same laws of the same models.

use std::collections::BTreeMap;

use dlx_runtime::decode::hybrid::accept::{Origin, Proposal, bonus};
use dlx_runtime::decode::noise::{Noise, NoiseRow, Stream};
use dlx_runtime::decode::sample::{Law, Sampler};
use dlx_runtime::decode::{DecodePolicy, Overrides};
use dlx_runtime::exec::{Executor, Span};
use dlx_runtime::session::{Drafting, Length, Prompt, Request, Speculate, Verdict};
use dlx_runtime::text::Message;

use super::{VERIFIER, answer, load, session, wanted};

/// Tokens whose joint law is compared.
const TOKENS: usize = 3;
/// Tokens of a draft.
const DRAFT: usize = 4;
/// The settings: temperature and top-p.
const SETTINGS: [(f32, f32); 4] = [(0.7, 1.0), (1.0, 1.0), (1.5, 1.0), (1.0, 0.9)];

fn request() -> Request {
    let messages = vec![Message::new("user", "Tell me a story.")];
    Request::new(Prompt::Chat { messages, variables: serde_json::Map::new() }, TOKENS + DRAFT)
}

/// A model whose laws are remembered by what it was fed.
struct Laws {
    executor: Box<dyn Executor + Send>,
    policy: DecodePolicy,
    sampler: Sampler,
    /// Length of the prompt, behind which penalties count.
    prompt: usize,
    known: BTreeMap<Vec<i32>, Vec<Law>>,
}

impl Laws {
    fn of(model: &str, (temperature, top_p): (f32, f32)) -> Self {
        let model = load(model, "cpu", 0);
        // The mask of the drafters, which the verifier is kept from.
        let policy = DecodePolicy { temperature, top_p, suppress_ids: vec![511], ..model.manifest.policy.clone() };
        let (executor, sampler) = (model.executor.into_executor(), Sampler::default());
        Laws { executor, policy, sampler, prompt: usize::MAX, known: BTreeMap::new() }
    }

    /// The laws of the last `rows` rows of these tokens.
    fn last(&mut self, ids: &[i32], rows: usize) -> Vec<Law> {
        if let Some(known) = self.known.get(ids) {
            return known.clone();
        }
        let pos: Vec<i32> = (0..).take(ids.len()).collect();
        self.executor.step(&[Span::new(ids, &pos, 0)]).unwrap();
        let rows: Vec<usize> = (ids.len() - rows..ids.len()).collect();
        let vocab = self.executor.vocab();
        let mut logits = vec![0.0; rows.len() * vocab];
        self.executor.logits(&rows, &mut logits).unwrap();
        let laws = rows.iter().zip(logits.chunks_exact_mut(vocab)).map(|(row, logits)| {
            adjust(&self.policy, self.prompt, &ids[..=*row], logits);
            self.sampler.law(logits, &self.policy).unwrap()
        });
        let laws: Vec<Law> = laws.collect();
        self.known.insert(ids.to_vec(), laws.clone());
        laws
    }
}

/// Biases and penalties as the documents have them, from all tokens before a row's.
fn adjust(policy: &DecodePolicy, prompt: usize, before: &[i32], logits: &mut [f32]) {
    for (id, logit) in (0..).zip(logits) {
        *logit += policy.logit_bias.get(&id).copied().unwrap_or(0.0);
        if before.contains(&id) {
            *logit *= if *logit < 0.0 { policy.repetition_penalty } else { 1.0 / policy.repetition_penalty };
        }
        let count = before.iter().skip(prompt).filter(|token| **token == id).count() as f32;
        *logit -= count * policy.frequency_penalty + count.min(1.0) * policy.presence_penalty;
    }
}

/// The joint law of the next tokens: sequences that are likely enough to count, by enumeration.
fn enumerate(verifier: &mut Laws, prompt: &[i32], least: f64) -> BTreeMap<Vec<i32>, f64> {
    let stops = verifier.policy.stop_ids.clone();
    let mut cells = BTreeMap::from([(Vec::new(), 1.0)]);
    for _ in 0..TOKENS {
        let mut longer = BTreeMap::new();
        for (tokens, prob) in cells {
            if tokens.last().is_some_and(|token| stops.contains(token)) {
                longer.insert(tokens, prob);
                continue;
            }
            let law = verifier.last(&[prompt, &tokens].concat(), 1).remove(0);
            for (token, p) in law.iter().filter(|(_, p)| prob * p >= least) {
                longer.insert([&tokens[..], &[token]].concat(), prob * p);
            }
        }
        cells = longer;
    }
    cells
}

/// How far draws are from a law, in standard deviations of a chi-square; what it does not list is one cell.
fn z(law: &BTreeMap<Vec<i32>, f64>, draws: &[Vec<i32>]) -> f64 {
    let mut counts: BTreeMap<&[i32], f64> = BTreeMap::new();
    draws.iter().for_each(|draw| *counts.entry(draw).or_default() += 1.0);
    let total = draws.len() as f64;
    let (mut chi, mut cells, mut rest) = (0.0, 0.0, (total, total));
    for (tokens, p) in law.iter().filter(|(_, p)| *p * total >= 5.0) {
        let (count, expected) = (counts.get(&tokens[..]).copied().unwrap_or(0.0), p * total);
        chi += f64::powi(count - expected, 2) / expected;
        cells += 1.0;
        rest = (rest.0 - count, rest.1 - expected);
    }
    if rest.1 >= 1.0 {
        chi += f64::powi(rest.0 - rest.1, 2) / rest.1;
        cells += 1.0;
    }
    assert!(cells > 8.0, "the prompt decides too much: {cells} cells");
    (chi - (cells - 1.0)) / f64::sqrt(2.0 * (cells - 1.0))
}

/// The first tokens of a draw, up to a stop.
fn first(ids: &[i32], stops: &[i32]) -> Vec<i32> {
    let end = ids.iter().position(|id| stops.contains(id)).map_or(ids.len(), |stop| stop + 1);
    ids[..end.min(TOKENS)].to_vec()
}

#[test]
fn sessions_draw_from_the_verifiers_law() {
    let draws: u64 = wanted("DLX_HYBRID_DRAWS", 600);
    for (drafter, drafting) in
        [("sdar-tiny", Drafting::Deer), ("llada-tiny", Drafting::Deer), ("fast-dllm-v2-tiny", Drafting::SpecDiff)]
    {
        let mut hybrid = session(VERIFIER, "cpu", 0);
        hybrid.draft_with(load(drafter, "cpu", 0)).unwrap();
        let prompt = hybrid.encode(&request()).unwrap();
        for setting in SETTINGS {
            let mut verifier = Laws::of(VERIFIER, setting);
            let law = enumerate(&mut verifier, &prompt, 1.0 / draws as f64);
            let stops = hybrid.policy().stop_ids.clone();
            let mut draw = |seed| {
                let speculate = Speculate { drafting, length: Length::Fixed(DRAFT), verdict: Verdict::Verifier };
                let mut request = Request { keep: true, speculate: Some(speculate), ..request() };
                let overrides = &mut request.overrides;
                (overrides.temperature, overrides.top_p, overrides.seed) =
                    (Some(setting.0), Some(setting.1), Some(seed));
                // Stop tokens are left out of an answer, but not of the law.
                overrides.stop_ids = Some(vec![]);
                first(&answer(&mut hybrid, &request).ids, &stops)
            };
            let z = z(&law, &(0..draws).map(&mut draw).collect::<Vec<_>>());
            println!("{drafter} {drafting:?} {setting:?}: {draws} draws, z {z:.2}");
            assert!(z.abs() < 4.0, "{drafter} {drafting:?} {setting:?}: z {z}");
        }
    }
}

#[test]
fn a_bias_and_penalties_are_part_of_the_law() {
    let draws: u64 = wanted("DLX_HYBRID_DRAWS", 600);
    let setting = SETTINGS[1];
    let mut plain = Laws::of(VERIFIER, setting);
    let prompt = session(VERIFIER, "cpu", 0).encode(&request()).unwrap();
    // What would come most likely does not, and what came once comes less.
    let mut likely: Vec<(i32, f64)> = plain.last(&prompt, 1)[0].iter().collect();
    likely.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut verifier = Laws::of(VERIFIER, setting);
    verifier.prompt = prompt.len();
    let policy = &mut verifier.policy;
    policy.logit_bias = [(likely[0].0, -1.0), (likely[1].0, 0.7)].into();
    (policy.repetition_penalty, policy.frequency_penalty, policy.presence_penalty) = (1.3, 0.4, 0.5);
    let asked = policy.clone();
    let least = 1.0 / draws as f64;
    let (law, other) = (enumerate(&mut verifier, &prompt, least), enumerate(&mut plain, &prompt, least));
    for (drafter, drafting) in
        [("sdar-tiny", Drafting::Deer), ("llada-tiny", Drafting::Deer), ("fast-dllm-v2-tiny", Drafting::SpecDiff)]
    {
        let mut hybrid = session(VERIFIER, "cpu", 0);
        hybrid.draft_with(load(drafter, "cpu", 0)).unwrap();
        let mut draw = |seed| {
            let speculate = Speculate { drafting, length: Length::Fixed(DRAFT), verdict: Verdict::Verifier };
            let mut request = Request { keep: true, speculate: Some(speculate), ..request() };
            request.overrides = Overrides {
                temperature: Some(setting.0),
                logit_bias: Some(asked.logit_bias.clone()),
                repetition_penalty: Some(asked.repetition_penalty),
                frequency_penalty: Some(asked.frequency_penalty),
                presence_penalty: Some(asked.presence_penalty),
                stop_ids: Some(vec![]),
                seed: Some(seed),
                ..Overrides::default()
            };
            first(&answer(&mut hybrid, &request).ids, &asked.stop_ids)
        };
        let drawn: Vec<_> = (0..draws).map(&mut draw).collect();
        let (z, without) = (z(&law, &drawn), z(&other, &drawn));
        println!("{drafter} {drafting:?} with a bias and penalties: {draws} draws, z {z:.2}; without {without:.2}");
        assert!(z.abs() < 4.0, "{drafter} {drafting:?}: z {z}");
        assert!(without > 6.0, "{drafter} {drafting:?}: z {without}");
    }
}

/// What is done with a drafted token.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// As the product does.
    Exact,
    /// The drafted token is given, whatever law it was drawn from.
    PointMass,
    /// q is read from a pass over the finished draft.
    FinishedDraft,
    /// Accept while c √p(y) ≥ 0.3, with c the drafter's largest probability; when nothing is accepted, draw from p.
    Threshold,
    /// Accept the most likely token, otherwise draw from p.
    Argmax,
}

/// One draw of the first tokens by a rule.
fn simulate(rule: Rule, verifier: &mut Laws, drafter: &mut Laws, prompt: &[i32], seed: u64) -> Vec<i32> {
    let stops = verifier.policy.stop_ids.clone();
    let mut ids = prompt.to_vec();
    for round in 0.. {
        if ids.len() >= prompt.len() + TOKENS {
            break;
        }
        let at = |position| NoiseRow { pass: round, position };
        let n = ids.len();
        // The block-causal drafter has seen whole blocks of four.
        let end = (n + DRAFT).next_multiple_of(4);
        let canvas = [&ids[..], &vec![511; end - n]].concat();
        let q = drafter.last(&canvas, end - n);
        let noise = Noise::Stream(seed, Stream::Draft);
        let draft: Vec<i32> = (0..DRAFT).map(|i| q[i].draw(&noise, at(n + i)).unwrap()).collect();
        let finished = match rule {
            Rule::FinishedDraft => {
                let full = [&ids[..], &draft, &vec![511; end - n - DRAFT]].concat();
                drafter.last(&full, end - n)
            }
            _ => q.clone(),
        };
        for i in 0..=DRAFT {
            let p = verifier.last(&ids, 1).remove(0);
            let own = |stream| p.draw(&Noise::Stream(seed, stream), at(n + i)).unwrap();
            let Some(&token) = draft.get(i) else {
                ids.push(bonus(&p, seed, at(n + i)).unwrap());
                break;
            };
            let (token, kept) = match rule {
                Rule::Exact | Rule::FinishedDraft => {
                    let origin = Origin::Drawn(finished[i].clone());
                    Proposal { token, origin }.judge(&p, seed, at(n + i)).unwrap()
                }
                Rule::PointMass => Proposal { token, origin: Origin::Given }.judge(&p, seed, at(n + i)).unwrap(),
                Rule::Threshold => {
                    let sure = q[i].iter().map(|(_, q)| q).fold(0.0, f64::max);
                    if sure * p.prob(token).sqrt() >= 0.3 {
                        (token, true)
                    } else if i > 0 {
                        break;
                    } else {
                        (own(Stream::Residual), false)
                    }
                }
                Rule::Argmax => {
                    let best = p.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
                    if token == best { (token, true) } else { (own(Stream::Residual), false) }
                }
            };
            ids.push(token);
            if !kept {
                break;
            }
        }
    }
    first(&ids[prompt.len()..], &stops)
}

#[test]
fn every_wrong_rule_is_caught() {
    let draws: u64 = wanted("DLX_HYBRID_DRAWS", 20_000);
    let prompt = session(VERIFIER, "cpu", 0).encode(&request()).unwrap();
    let setting = SETTINGS[1];
    let (mut verifier, mut drafter) = (Laws::of(VERIFIER, setting), Laws::of("sdar-tiny", setting));
    let law = enumerate(&mut verifier, &prompt, 1.0 / draws as f64);
    let entropy: f64 = law.values().map(|p| -p * libm::log(*p)).sum();
    assert!(entropy > 2.0, "{entropy} nats prove little");
    for rule in [Rule::Exact, Rule::PointMass, Rule::FinishedDraft, Rule::Threshold, Rule::Argmax] {
        let drawn = (0..draws).map(|seed| simulate(rule, &mut verifier, &mut drafter, &prompt, seed));
        let z = z(&law, &drawn.collect::<Vec<_>>());
        println!("{rule:?}: {draws} draws, z {z:.1}");
        let right = matches!(rule, Rule::Exact | Rule::PointMass);
        assert!(if right { z.abs() < 4.0 } else { z > 6.0 }, "{rule:?}: z {z}");
    }
}
