//! `dlxc run`: what can be typed, where the prompt comes from, and how answers are counted. [`chat`](super::chat) runs it.
//! `chat.rs`.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use dlx_ir::Error;
use dlx_runtime::constrain::Grammar;
use dlx_runtime::decode::policy::{Attention, CacheMode};
use dlx_runtime::decode::{DecodePolicy, Overrides, Reveal};
use dlx_runtime::policies::Aim;
use dlx_runtime::session::Report;
use serde_json::json;

use super::table;
use crate::options::QuantSpec;

/// Generate text with a compiled model.
#[derive(Parser, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A .dlxa file, a model directory to compile first, or the directory of an export, which is run on the CPU.
    #[arg(value_name = "ARTIFACT|MODEL")]
    pub model: PathBuf,
    /// What to say; standard input if not given.
    pub prompt: Option<String>,
    /// Go on asking: one turn per line of input, or a command; /help lists them. A turn that cannot be answered, because
    /// it is too long or no text, and a wrong command are refused with a message, and the conversation goes on without
    /// it; the exit status is 0 all the same.
    #[arg(long, conflicts_with = "raw")]
    pub chat: bool,
    /// System message.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub system: Option<String>,
    /// Give the prompt to the model as it is, without the chat template. Special tokens in it count, and masks are
    /// filled in.
    #[arg(long)]
    pub raw: bool,
    /// Leave out what the tokenizer puts before raw texts, such as a beginning-of-text token.
    #[arg(long, requires = "raw")]
    pub no_bos: bool,
    /// Let the text of special tokens in messages mean these tokens; it is ordinary text otherwise.
    #[arg(long, conflicts_with = "raw")]
    pub allow_special: bool,
    /// How to decode.
    #[command(flatten)]
    pub decode: Decode,
    /// Who drafts.
    #[command(flatten)]
    pub hybrid: super::hybrid::Hybrid,
    /// Where it runs.
    #[command(flatten)]
    pub place: super::Place,
    /// Decode with the fastest setting of this quality that `dlxc tune` stored: fast, balanced, best, or the least agreement,
    /// such as 0.95. See docs/tune.md.
    #[arg(long, value_name = "QUALITY", value_parser = quality, conflicts_with_all = FIXED)]
    pub quality: Option<Aim>,
    /// Decode with the best setting that `dlxc tune` stored and that is expected to end within this time, such as 500ms, and
    /// stop then in any case.
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with_all = FIXED, conflicts_with = "quality")]
    pub deadline: Option<Duration>,
    /// Stop after this time, such as 30s, 500ms or 2m.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub timeout: Option<Duration>,
    /// Answer with JSON that this JSON Schema allows; see docs/structured.md.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["regex", "draft", "speculate", "trace", "ignore_eos"])]
    pub schema: Option<PathBuf>,
    /// Answer with a text that this regular expression matches as a whole.
    #[arg(long, value_name = "RE", conflicts_with_all = ["draft", "speculate", "trace", "ignore_eos"])]
    pub regex: Option<String>,
    /// Format of the weights when a model directory is compiled first; int4 if not given, but what comes quantized stays so.
    #[arg(long, value_name = "FORMAT")]
    pub quant: Option<QuantSpec>,
    /// Report text and statistics as JSON.
    #[arg(long)]
    pub json: bool,
    /// Print statistics to stderr.
    #[arg(long)]
    pub stats: bool,
    /// Record every pass, what the model said of each position, and why tokens were revealed; `dlxc trace` reads it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["chat", "draft", "speculate"])]
    pub trace: Option<PathBuf>,
}

/// What a call changes of the model's own way of decoding. What is serialized can be changed from turn to turn.
#[derive(clap::Args, Clone, Debug, serde::Serialize)]
pub struct Decode {
    /// Most tokens to generate; 256 if not given, or 64 for models that see the whole answer at once, whose answers depend on
    /// its length.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub max_new: Option<u32>,
    /// Reveal tokens that are surer than this.
    #[arg(long, value_name = "P", value_parser = probability)]
    pub threshold: Option<f32>,
    /// Denoising steps per block, for rules with a fixed schedule.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub steps: Option<u32>,
    /// Which tokens to reveal; the model's own rule if not given.
    #[arg(long, value_name = "RULE")]
    pub rule: Option<String>,
    /// How sure the model is of a token: probability, margin, neg-entropy.
    #[arg(long, value_name = "MEASURE")]
    pub confidence: Option<String>,
    /// Cache of models with full attention: none, prefix or dual. The last two are faster and approximate.
    #[arg(long, value_name = "CACHE", value_parser = cache_mode)]
    pub cache: Option<CacheMode>,
    /// Classifier-free guidance away from the answer without the prompt; 0 is off. It needs a second set of caches.
    #[arg(long, value_name = "W", value_parser = temperature)]
    pub cfg: Option<f32>,
    /// Randomness; 0 always takes the most likely token.
    #[arg(long, value_name = "T", value_parser = temperature)]
    pub temperature: Option<f32>,
    /// Sample among the K most likely tokens.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    pub top_k: Option<u32>,
    /// Sample among the most likely tokens that together have this probability.
    #[arg(long, value_name = "P", value_parser = probability)]
    pub top_p: Option<f32>,
    /// Sample among tokens at least this part as likely as the most likely one.
    #[arg(long, value_name = "P", value_parser = probability)]
    pub min_p: Option<f32>,
    /// Divide the logits of tokens that prompt or answer have by this; above 1 they become less likely.
    #[arg(long, value_name = "R", value_parser = repetition)]
    pub repetition_penalty: Option<f32>,
    /// Take this from the logit of a token for each time that the answer has it.
    #[arg(long, value_name = "X", value_parser = penalty, allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Take this from the logits of tokens that the answer has.
    #[arg(long, value_name = "X", value_parser = penalty, allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Add to the logit of a token, such as 42=-100; may be repeated.
    #[arg(long, value_name = "TOKEN=X")]
    pub logit_bias: Vec<Bias>,
    /// Do not end before so many tokens.
    #[arg(long, value_name = "N")]
    pub min_tokens: Option<u32>,
    /// Seed; the same seed gives the same text.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Stop at this text, or at the special token with this text; may be repeated.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Do not stop at the model's own end tokens; --stop still counts.
    #[arg(long)]
    pub ignore_eos: bool,
    /// Threads to use, one per core if not given. The text does not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    #[serde(skip)]
    pub threads: Option<u16>,
}

/// What is added to the logit of a token; written `42=-100`.
#[derive(Clone, Debug, PartialEq)]
pub struct Bias {
    token: i32,
    add: f32,
}

impl std::str::FromStr for Bias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(token, add)| Some((token.parse().ok()?, add.parse().ok()?)));
        let bias = parts.filter(|(token, add)| *token >= 0 && (-100.0..=100.0).contains(add));
        bias.map(|(token, add)| Self { token, add })
            .ok_or_else(|| "use a token id and a number from -100 to 100, such as 42=-100".into())
    }
}

impl serde::Serialize for Bias {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}={}", self.token, self.add))
    }
}

const EXAMPLES: &str = "\
Examples:
  dlxc run sdar.dlxa \"What is the capital of France?\"
  dlxc run sdar.dlxa \"What is 27 + 45?\" --trace t.jsonl
  dlxc run qwen.dlxa --draft sdar.dlxa --stats \"What is 27 + 45?\"
  dlxc run fast-dllm.dlxa --speculate self --draft-length 8 \"What is 27 + 45?\"
  dlxc run sdar.dlxa --schema person.json \"Who wrote Faust?\"
  dlxc run sdar.dlxa --chat --system \"Answer briefly.\"
  dlxc run dream.dlxa --raw --max-new 64 --threshold 0.9 < prompt.txt";

/// Flags of what measured settings say.
const FIXED: [&str; 5] = ["threshold", "steps", "rule", "confidence", "cache"];

/// Longest file of a schema in bytes.
const MAX_SCHEMA: u64 = 16 << 20;

/// Longest prompt or turn in bytes.
pub const MAX_PROMPT: u64 = 16 << 20;

impl Args {
    /// What measured settings are picked by.
    pub fn aim(&self) -> Option<Aim> {
        self.quality.or(self.deadline.map(Aim::Within))
    }

    /// What answers must be.
    ///
    /// # Errors
    /// When the file of a schema cannot be read, or is no JSON.
    pub fn grammar(&self) -> Result<Option<Grammar>, Error> {
        let Some(path) = &self.schema else { return Ok(self.regex.clone().map(Grammar::Regex)) };
        let mut text = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX_SCHEMA).read_to_end(&mut text));
        read.map_err(|e| Error::new(path.display(), format!("cannot be read: {e}")))?;
        let schema = serde_json::from_slice(&text);
        let schema = schema.map_err(|e| Error::new(path.display(), format!("is no JSON of up to 16 MiB: {e}")))?;
        Ok(Some(Grammar::Schema(schema)))
    }

    /// The prompt: the argument, or all of standard input unless that is a terminal.
    ///
    /// # Errors
    /// When there is none, or standard input is not text or too long.
    pub fn prompt(&self) -> Result<String, Error> {
        if let Some(prompt) = &self.prompt {
            return Ok(prompt.clone());
        }
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            return Err(Error::new("", "there is no prompt").help("give one as an argument or on standard input"));
        }
        read_prompt(stdin.lock())
    }
}

impl Decode {
    /// Most tokens to generate.
    pub fn max_new(&self, policy: &DecodePolicy) -> usize {
        max_new(self.max_new, policy)
    }

    /// What the arguments change of the model's own policy.
    pub fn overrides(&self, policy: &DecodePolicy) -> Overrides {
        let count = |n: Option<u32>| n.and_then(|n| usize::try_from(n).ok());
        let rule = self.rule.as_deref().map(Reveal::new);
        let reveal = match (rule, self.threshold) {
            (rule, None) => rule,
            (rule, Some(t)) => {
                let has_threshold = policy.reveal.params.contains_key("threshold");
                let own = if has_threshold { policy.reveal.clone() } else { Reveal::new("threshold") };
                Some(rule.unwrap_or(own).with("threshold", t))
            }
        };
        Overrides {
            reveal,
            steps: count(self.steps),
            confidence: self.confidence.clone(),
            cache: self.cache,
            cfg_scale: self.cfg,
            temperature: self.temperature,
            top_k: count(self.top_k),
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: (!self.logit_bias.is_empty())
                .then(|| self.logit_bias.iter().map(|b| (b.token, b.add)).collect()),
            min_tokens: count(self.min_tokens),
            seed: Some(self.seed),
            stop_ids: self.ignore_eos.then(Vec::new),
            stop_strings: (!self.stop.is_empty()).then(|| self.stop.clone()),
            ..Overrides::default()
        }
    }
}

/// Most tokens to generate, when `given` was typed.
pub fn max_new(given: Option<u32>, policy: &DecodePolicy) -> usize {
    let default = if policy.attention == Attention::Full { 64 } else { 256 };
    given.map_or(default, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// A report for programs.
pub fn as_json(report: &Report) -> serde_json::Value {
    let seconds = |d: Duration| d.as_secs_f64();
    let mut json = json!({
        "text": report.text,
        "ids": report.ids,
        "prefix": report.prefix,
        "prompt_tokens": report.prompt_tokens,
        "held_tokens": report.held_tokens,
        "tokens": report.ids.len(),
        "finish": report.finish,
        "chosen": report.chosen,
        "forwards": report.passes.forward(),
        "passes": report.passes,
        "tokens_per_forward": report.tokens_per_forward(),
        "seconds": {
            "total": seconds(report.total),
            "prefill": seconds(report.times.prefill),
            "step": seconds(report.times.step),
            "head": seconds(report.times.head),
            "commit": seconds(report.times.commit),
        },
    });
    if let Some(speculation) = &report.speculation {
        json["speculation"] = super::hybrid::as_json(speculation);
    }
    json
}

/// A report for people.
pub fn statistics(report: &Report) -> String {
    let (p, t) = (&report.passes, &report.times);
    let chosen = report.chosen.as_ref().map_or_else(String::new, |c| {
        let seconds = table::duration(Duration::try_from_secs_f64(c.seconds).unwrap_or(Duration::MAX));
        let misses = if c.fits { "" } else { ", the fastest, though not fast enough" };
        format!("; decoded by {} (agreement {:.3}, up to {seconds} expected{misses})", c.settings, c.agreement)
    });
    if let Some(speculation) = &report.speculation {
        return format!(
            "{} tokens in {} ({:.1}/s); {} of {} prompt tokens from the caches; prefill {}; {}",
            report.ids.len(),
            table::duration(report.total),
            report.ids.len() as f64 / report.total.as_secs_f64().max(1e-9),
            report.held_tokens,
            report.prompt_tokens,
            table::duration(t.prefill),
            super::hybrid::statistics(speculation),
        );
    }
    format!(
        "{} tokens in {} ({:.1}/s), {} forwards ({} prefill, {} denoise, {} commit), {:.2} tokens per forward; \
         {} of {} prompt tokens from the caches; prefill {}, step {}, head {}, commit {}{chosen}",
        report.ids.len(),
        table::duration(report.total),
        report.ids.len() as f64 / report.total.as_secs_f64().max(1e-9),
        p.forward(),
        p.prefill,
        p.denoise,
        p.commit,
        report.tokens_per_forward(),
        report.held_tokens,
        report.prompt_tokens,
        table::duration(t.prefill),
        table::duration(t.step),
        table::duration(t.head),
        table::duration(t.commit),
    )
}

fn read_prompt(input: impl Read) -> Result<String, Error> {
    let mut text = String::new();
    input
        .take(MAX_PROMPT + 1)
        .read_to_string(&mut text)
        .map_err(|e| Error::new("standard input", format!("is not a prompt: {e}")).help("send UTF-8 text"))?;
    if text.len() as u64 > MAX_PROMPT {
        return Err(Error::new("standard input", format!("is longer than {MAX_PROMPT} bytes")));
    }
    // The line feed that ends the last line is the shell's, not the prompt's.
    let end = text.strip_suffix('\n').map_or(text.len(), |t| t.strip_suffix('\r').unwrap_or(t).len());
    text.truncate(end);
    if text.is_empty() {
        return Err(Error::new("standard input", "is empty").help("give a prompt as an argument or on standard input"));
    }
    Ok(text)
}

fn cache_mode(text: &str) -> Result<CacheMode, String> {
    match text {
        "none" => Ok(CacheMode::None),
        "prefix" => Ok(CacheMode::Prefix),
        "dual" => Ok(CacheMode::Dual),
        _ => Err("use none, prefix or dual; block-causal models keep an exact cache by themselves".into()),
    }
}

fn quality(text: &str) -> Result<Aim, String> {
    match text {
        "fast" => Ok(Aim::Fast),
        "balanced" => Ok(Aim::Balanced),
        "best" => Ok(Aim::Best),
        _ => {
            let least = text.parse().ok().filter(|p| *p > 0.0 && *p <= 1.0).map(Aim::AtLeast);
            least.ok_or_else(|| "use fast, balanced, best, or a number above 0, up to 1".into())
        }
    }
}

pub(super) fn probability(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|p| *p > 0.0 && *p <= 1.0).ok_or_else(|| "use a number above 0, up to 1".into())
}

fn temperature(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|t| (0.0..=100.0).contains(t)).ok_or_else(|| "use a number from 0 to 100".into())
}

fn repetition(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|r| (0.01..=100.0).contains(r)).ok_or_else(|| "use a number from 0.01 to 100".into())
}

fn penalty(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|x| (-2.0..=2.0).contains(x)).ok_or_else(|| "use a number from -2 to 2".into())
}

/// A time such as 30s.
///
/// # Errors
/// What to write instead.
pub fn time(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err("use a number with ms, s, m or h, such as 30s".into()),
    };
    let seconds: Option<f64> = number.parse().ok().filter(|n: &f64| *n > 0.0);
    seconds
        .and_then(|n| Duration::try_from_secs_f64(n * scale).ok())
        .ok_or_else(|| "use a positive number with ms, s, m or h, such as 30s".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked() {
        let parse = |rest: &str| Args::try_parse_from(format!("run m.dlxa hello {rest}").split_whitespace());
        let args = parse("--threshold 0.9 --temperature 0 --top-p 1 --timeout 500ms --stop a --stop b").unwrap();
        assert_eq!(
            (args.decode.threshold, args.decode.temperature, args.decode.top_p),
            (Some(0.9), Some(0.0), Some(1.0))
        );
        assert_eq!((args.timeout, args.decode.stop.len()), (Some(Duration::from_millis(500)), 2));
        assert_eq!(args.prompt().unwrap(), "hello");
        let args =
            parse("--min-p 0.1 --repetition-penalty 1.1 --presence-penalty -1 --logit-bias 5=-100 --logit-bias 7=2.5");
        let overrides = args.unwrap().decode.overrides(&DecodePolicy::greedy(1, 4));
        assert_eq!((overrides.min_p, overrides.repetition_penalty), (Some(0.1), Some(1.1)));
        assert_eq!((overrides.presence_penalty, overrides.frequency_penalty), (Some(-1.0), None));
        assert_eq!(overrides.logit_bias, Some([(5, -100.0), (7, 2.5)].into()));
        for wrong in [
            "--min-p 0",
            "--repetition-penalty 0",
            "--frequency-penalty 2.1",
            "--logit-bias 5",
            "--logit-bias 5=101",
            "--logit-bias -5=1",
            "--logit-bias 5=NaN",
            "--threshold 0",
            "--threshold 1.1",
            "--threshold NaN",
            "--temperature -1",
            "--temperature inf",
            "--top-p 2",
            "--top-k 0",
            "--max-new 0",
            "--steps 0",
            "--timeout 0",
            "--timeout -1s",
            "--timeout 5y",
            "--timeout infs",
            "--timeout 1e300h",
            "--chat --raw",
            "--system x --raw",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_parse() {
        for (text, ms) in [("2", 2000), ("1.5s", 1500), ("250ms", 250), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(time(text), Ok(Duration::from_millis(ms)));
        }
    }

    #[test]
    fn the_last_line_feed_of_standard_input_is_dropped() {
        assert_eq!(read_prompt(&b"a\nb\n"[..]).unwrap(), "a\nb");
        assert_eq!(read_prompt(&b"a\r\n"[..]).unwrap(), "a");
        assert_eq!(read_prompt(&b"a\n\n"[..]).unwrap(), "a\n");
        assert!(read_prompt(&b"\n"[..]).unwrap_err().message.contains("empty"));
        assert!(read_prompt(&b"\xff"[..]).unwrap_err().help.contains("UTF-8"));
    }
}
