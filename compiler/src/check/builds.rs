//! Two builds of the compiler, by the dumps that they wrote of one model: the first stage of which they make different things.
//!
//! Stages behind a wrong one are wrong, too, so the first is found in about log₂ comparisons of numbers; stages whose text
//! is the same need none. A dump has no weights: the same ones are made up for both sides.

use std::path::{Path, PathBuf};

use dlx_ir::{Error, Module, VerifiedModule};
use dlx_passes::{Keeps, parse_pipeline};
use serde::Serialize;

use super::built::read_ir;
use super::compare::{Between, Breach};
use super::each::{Found, Stages, judge};
use super::reduce::{Repro, reduce};
use super::source::Seeded;

/// In front of the text of a stage: the pass that it lies behind.
pub const BEHIND: &str = "; behind ";
/// Most weights of a module that is run whole.
const MAX_WEIGHTS: usize = 64 << 20;

/// The first stage of which two builds make different things.
#[derive(Clone, Debug, Serialize)]
pub struct Parting {
    /// Its name, such as `13-quantize`.
    pub stage: String,
    /// The pass with its parameters, if the dump says it.
    pub pass: Option<String>,
    /// The first value that differs, or the first result.
    pub breach: Option<Breach>,
    /// The nodes that compute it in the first build, and in the second.
    pub between: Between,
    /// Stages whose numbers were compared, of those that both have.
    pub compared: usize,
    /// See `compared`.
    pub stages: usize,
    /// Stages that only one of them has: a pass changed something there, and nothing in the other.
    pub alone: Vec<String>,
    /// The smallest module on which the pass of this build is wrong, if it is.
    pub repro: Option<Repro>,
}

/// Files of stages, by name, as [`super::built::Built::Dumps`] has them.
pub type Dumps = [(String, PathBuf)];

/// Finds where two builds part; nothing where all that both dumped computes the same.
///
/// # Errors
/// Dumps without a common stage, text that is not valid IR of this version, or a stage that cannot be run.
pub fn part(a: &Dumps, b: &Dumps, seed: u64) -> Result<Option<Parting>, Error> {
    let other = |name: &str, of: &'_ Dumps| of.iter().find(|(n, _)| n == name).map(|(_, path)| path.clone());
    let both = a.iter().filter_map(|(name, path)| Some((name.as_str(), path.clone(), other(name, b)?)));
    let all: Vec<(&str, PathBuf, PathBuf)> = both.collect();
    if all.is_empty() {
        let help = "give the directories that two builds wrote with `dlxc compile MODEL --dump DIR`";
        return Err(Error::new("dumps", "no stage has the same name in both directories").help(help));
    }
    let only = |these: &Dumps, those: &Dumps| -> Vec<String> {
        these.iter().filter(|(name, _)| other(name, those).is_none()).map(|(name, _)| name.clone()).collect()
    };
    let alone = [only(a, b), only(b, a)].concat();
    // Several targets lie side by side; each has stages of its own.
    for stages in all.chunk_by(|x, y| target(x.0) == target(y.0)) {
        let mut compared = 0;
        let mut differ = |at: usize| -> Result<Option<Found>, Error> {
            let (_, x, y) = &stages[at];
            if std::fs::read(x).ok() == std::fs::read(y).ok() {
                return Ok(None);
            }
            compared += 1;
            Ok(Some(compare(x, y, seed)?).filter(|found| found.comparison.breach.is_some()))
        };
        let Some(mut first) = differ(stages.len() - 1)? else { continue };
        let (mut good, mut bad) = (None, stages.len() - 1);
        while bad > good.map_or(0, |g: usize| g + 1) {
            let middle = good.map_or(0, |g: usize| g + 1).midpoint(bad);
            match differ(middle)? {
                Some(found) => (bad, first) = (middle, found),
                None => good = Some(middle),
            }
        }
        let (stage, x, y) = &stages[bad];
        let pass = behind(y).or_else(|| behind(x));
        let step = pass.as_ref().and_then(|pass| parse_pipeline(pass).ok()?.pop());
        let before = good.map(|good| read_ir(&stages[good].1)).transpose()?;
        let repro = before.zip(step).and_then(|(module, step)| reduce(&module, &step, first.name.as_deref(), seed));
        return Ok(Some(Parting {
            stage: (*stage).to_owned(),
            pass,
            breach: first.value.or(first.comparison.breach),
            between: first.between.unwrap_or_default(),
            compared,
            stages: stages.len(),
            alone,
            repro,
        }));
    }
    Ok(None)
}

fn target(stage: &str) -> &str {
    stage.split_once('/').map_or("", |(target, _)| target)
}

/// The pass that a dump says it lies behind.
fn behind(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    Some(text.lines().next()?.strip_prefix(BEHIND)?.to_owned())
}

/// Runs both on the same inputs. The second has to compute what the first does, up to the order of sums.
fn compare(a: &Path, b: &Path, seed: u64) -> Result<Found, Error> {
    let (x, y) = (readable(a)?, readable(b)?);
    let (weights_x, weights_y) = (Seeded { module: &x, seed }, Seeded { module: &y, seed });
    let (mut old, mut new) = (Stages::new(&x, &weights_x, seed), Stages::new(&y, &weights_y, seed));
    let sizes = old.sizes([&*x, &*y]);
    let named = |file: &Path, e: Error| Error { place: format!("{}: {}", file.display(), e.place), ..e };
    let (before, after) =
        (old.run(&x, &sizes).map_err(|e| named(a, e))?, new.run(&y, &sizes).map_err(|e| named(b, e))?);
    let found = judge((&x, &before), (&y, &after), Keeps::Rounding)?;
    if found.comparison.compared == 0 {
        let message = format!("takes or gives other things than {}, so nothing can be compared", a.display());
        return Err(Error::new(b.display(), message).help("`dlxc diff` shows how their text differs"));
    }
    Ok(found)
}

fn readable(file: &Path) -> Result<VerifiedModule, Error> {
    let module = read_ir(file)?;
    let elements = |m: &Module| m.weights.iter().filter_map(|(_, w)| w.ty.elements()).fold(0, usize::saturating_add);
    let weights = elements(&module);
    if weights > MAX_WEIGHTS {
        let message = format!("has {weights} weights, and at most {MAX_WEIGHTS} are run whole");
        return Err(Error::new(file.display(), message).help("dump a small model of the family with both builds"));
    }
    Ok(module)
}
