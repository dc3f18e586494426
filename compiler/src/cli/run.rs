//! `dlxc run`: what can be typed, and where the prompt comes from.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use dlx_ir::Error;

/// Generate text with a compiled model.
#[derive(Parser, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A .dlxa file, or a model directory to compile first.
    #[arg(value_name = "ARTIFACT|MODEL")]
    pub model: PathBuf,
    /// What to say; standard input if not given.
    pub prompt: Option<String>,
    /// Go on asking: one turn per line of input.
    #[arg(long, conflicts_with = "raw")]
    pub chat: bool,
    /// System message.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub system: Option<String>,
    /// Give the prompt to the model as it is, without the chat template.
    #[arg(long)]
    pub raw: bool,
    /// Most tokens to generate.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub max_new: u32,
    /// Reveal tokens that are surer than this.
    #[arg(long, value_name = "P", value_parser = probability)]
    pub threshold: Option<f32>,
    /// Denoising steps per block, for rules with a fixed schedule.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub steps: Option<u32>,
    /// Which tokens to reveal; the model's own rule if not given.
    #[arg(long, value_name = "RULE")]
    pub rule: Option<String>,
    /// Randomness; 0 always takes the most likely token.
    #[arg(long, value_name = "T", value_parser = temperature)]
    pub temperature: Option<f32>,
    /// Sample among the K most likely tokens.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    pub top_k: Option<u32>,
    /// Sample among the most likely tokens that together have this probability.
    #[arg(long, value_name = "P", value_parser = probability)]
    pub top_p: Option<f32>,
    /// Seed; the same seed gives the same text.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Stop at this text; may be repeated.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Stop after this time, such as 30s, 500ms or 2m.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub timeout: Option<Duration>,
    /// Report text and statistics as JSON.
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  dlxc run sdar.dlxa \"What is the capital of France?\"
  dlxc run sdar.dlxa --chat --system \"Answer briefly.\"
  dlxc run dream.dlxa --raw --max-new 64 --threshold 0.9 < prompt.txt";

const MAX_PROMPT: u64 = 16 << 20;

impl Args {
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

fn probability(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|p| *p > 0.0 && *p <= 1.0).ok_or_else(|| "use a number above 0, up to 1".into())
}

fn temperature(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|t| (0.0..=100.0).contains(t)).ok_or_else(|| "use a number from 0 to 100".into())
}

fn time(text: &str) -> Result<Duration, String> {
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
        assert_eq!((args.threshold, args.temperature, args.top_p), (Some(0.9), Some(0.0), Some(1.0)));
        assert_eq!((args.timeout, args.stop.len()), (Some(Duration::from_millis(500)), 2));
        assert_eq!(args.prompt().unwrap(), "hello");
        for wrong in [
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
