//! What a sweep measured, as `--json` prints and `--costs` reads it.
//!
//! Times are whole nanoseconds and shares whole millionths, so that what is read is what was measured, to the bit.

use std::path::Path;
use std::time::Duration;

use dlx_ir::Error;
use dlx_runtime::policies::{Reference, Settings};
use serde::{Deserialize, Serialize};

use crate::tune::Trial;

/// The measured part of a report; what follows from it is no part of it.
#[derive(Serialize, Deserialize)]
pub(super) struct Measured {
    /// BLAKE3 of what the artifact holds.
    pub(super) model: String,
    /// BLAKE3 of the file of prompts.
    pub(super) prompts: String,
    /// What answers were compared with.
    pub(super) reference: Reference,
    /// Most tokens of an answer.
    pub(super) max_new: usize,
    /// What it ran on.
    pub(super) device: String,
    /// Time of a probe.
    pub(super) probe_ns: u64,
    /// What was tried.
    pub(super) settings: Vec<Settings>,
    /// The answers.
    pub(super) trials: Vec<Trial>,
}

/// Whole nanoseconds.
pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads a recording of the same sweep as `now`.
///
/// # Errors
/// A file that is none, or was made of another model, other prompts or settings.
pub(super) fn read(path: &Path, now: &Measured) -> Result<Measured, Error> {
    let place = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| Error::new(&place, format!("cannot be read: {e}")))?;
    let read: Measured = serde_json::from_str(&text).map_err(|e| {
        Error::new(&place, format!("is no recording of a sweep: {e}")).help("make one with dlxc tune … --json > FILE")
    })?;
    for (what, same) in [
        ("another artifact", read.model == now.model),
        ("another file of prompts", read.prompts == now.prompts),
        ("another reference", read.reference == now.reference),
        ("another --max-new", read.max_new == now.max_new),
        ("other settings", read.settings == now.settings),
    ] {
        if !same {
            return Err(Error::new(&place, format!("was recorded with {what}")).help("record again, without --costs"));
        }
    }
    if read.probe_ns == 0 {
        return Err(Error::new(&place, "its probe took no time").help("record again, without --costs"));
    }
    Ok(read)
}

impl Measured {
    /// What was recorded of a setting and a prompt.
    ///
    /// # Errors
    /// When nothing was.
    pub(super) fn trial(&self, path: &Path, setting: usize, prompt: usize) -> Result<Trial, Error> {
        let found = self.trials.iter().find(|t| (t.setting, t.prompt) == (setting, prompt));
        let message = || format!("has no answer to prompt {prompt} with setting {setting}");
        let trial = found.cloned().ok_or_else(|| {
            Error::new(path.display(), message()).help("give the --seed and --budget that it was recorded with")
        })?;
        // An agreement of more than one would make a point that no artifact may hold.
        match trial.agreement_ppm {
            0..=1_000_000 => Ok(trial),
            _ => Err(Error::new(path.display(), format!("the agreement of prompt {prompt} is above one"))
                .help("record again, without --costs")),
        }
    }
}
