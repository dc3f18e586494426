//! `dlxc bench ARTIFACT --serve`: what serving requests side by side gains.
//!
//! Invariant: for every number of clients, the same requests are answered one after the other and side by side in the same run,
//! and both give the same answers. What side by side reached is held against the bound that the step table of this run allows.
//! It measures a batch, without HTTP.

use std::time::Duration;

use clap::Args as ClapArgs;
use dlx_ir::Error;
use dlx_runtime::artifact::Artifact;
use dlx_runtime::batch::{Batch, Capacity, PrefixCache};
use serde_json::{Value, json};

use super::super::table::{self, Align};
use super::super::{Failure, terminal};
use super::Args;
use super::load::{self, Arrivals, Served, Shape};
use super::steps::Steps;

/// What is asked of the model that is served.
#[derive(ClapArgs, Debug)]
pub struct LoadArgs {
    /// Clients that each ask again as soon as they have an answer.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,4,16,64", requires = "serve", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub clients: Vec<u16>,
    /// Instead of clients: requests that come so many a second, whether or not earlier ones are answered.
    #[arg(long, value_name = "PER SECOND,…", value_delimiter = ',', requires = "serve", value_parser = rate)]
    pub rate: Vec<f64>,
    /// Tokens of a prompt.
    #[arg(long, value_name = "TOKENS", default_value_t = 128, requires = "serve", value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt: u32,
    /// Tokens that all prompts begin with.
    #[arg(long, value_name = "TOKENS", default_value_t = 0, requires = "serve")]
    pub shared: u32,
    /// Tokens of an answer.
    #[arg(long, value_name = "TOKENS", default_value_t = 64, requires = "serve", value_parser = clap::value_parser!(u32).range(1..))]
    pub new: u32,
    /// Requests of a line; if not given two of each client, and eight at least.
    #[arg(long, value_name = "N", requires = "serve", value_parser = clap::value_parser!(u32).range(1..))]
    pub requests: Option<u32>,
    /// Requests that are answered side by side; if not given, all.
    #[arg(long, value_name = "N", requires = "serve", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub sequences: Option<u16>,
    /// Cache rows that are kept for prompts that begin alike, or off.
    #[arg(long, value_name = "ROWS|off", default_value = "4096", requires = "serve", value_parser = super::super::serve::prefix_rows)]
    pub prefix_cache: usize,
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n: &f64| *n > 0.0 && n.is_finite());
    number.ok_or_else(|| "use a number of requests per second above 0".to_owned())
}

/// What one kind of load gave.
struct Line {
    arrivals: Arrivals,
    alone: Served,
    beside: Served,
    /// Where as many ask as are answered; at a rate, what is asked limits what is reached.
    steps: Option<Steps>,
    step_rows: usize,
    prefix: PrefixCache,
}

/// Runs the subcommand.
///
/// # Errors
/// Sizes that the model does not hold, answers that differ; on Ctrl-C.
pub(super) fn run(args: &Args, artifact: &Artifact) -> Result<(), Failure> {
    let place = artifact.path().display().to_string();
    let failed = |e: &dyn std::fmt::Display| Error::new(&place, e.to_string());
    let load = &args.load;
    let arrivals: Vec<Arrivals> = if load.rate.is_empty() {
        load.clients.iter().map(|clients| Arrivals::Closed(usize::from(*clients))).collect()
    } else {
        load.rate.iter().map(|rate| Arrivals::Open(*rate)).collect()
    };
    let bar = terminal::count_progress("measuring");
    bar.set_length(2 * arrivals.len() as u64);
    let mut lines = Vec::new();
    for arrivals in arrivals {
        let clients = match arrivals {
            Arrivals::Closed(clients) => clients,
            Arrivals::Open(_) => load.sequences.map_or(Capacity::default().sequences, usize::from),
        };
        let count = load.requests.map_or((2 * clients).max(8), super::size);
        let sequences = load.sequences.map_or(clients, usize::from);
        let side = Capacity { sequences, waiting: count, prefix_rows: load.prefix_cache, ..Capacity::default() };
        // One request at a time, which reads its prompt in steps as large as there are.
        let alone = Capacity { sequences: 1, prefill_rows: usize::MAX, prefix_rows: 0, ..side };
        let (alone, _) = serve(args, artifact, alone, arrivals, count)?;
        bar.inc(1);
        let (beside, batch) = serve(args, artifact, side, arrivals, count)?;
        if let Some(number) = alone.answers.iter().zip(&beside.answers).position(|(a, b)| a != b) {
            let text = format!("request {number} is answered differently beside others");
            return Err(failed(&text).help("this is a bug, unless the model runs on a graphics device").into());
        }
        let (step_rows, prefix) = (batch.capacity().step_rows.unwrap_or(0), batch.prefix_cache());
        drop(batch);
        let steps = match arrivals {
            Arrivals::Open(_) => None,
            Arrivals::Closed(clients) => {
                let passes = alone.passes.keys().chain(beside.passes.keys()).copied().collect();
                let mut model = super::super::load(artifact, &args.place, args.threads.first().copied())?;
                let steps = Steps::measure(&mut *model.executor, &passes, super::size(load.prompt), clients);
                Some(steps.map_err(|e| failed(&e))?)
            }
        };
        lines.push(Line { arrivals, alone, beside, steps, step_rows, prefix });
        bar.inc(1);
    }
    bar.finish_and_clear();
    terminal::print(&if args.json { format!("{:#}\n", to_json(args, &place, &lines)) } else { to_text(args, &lines) })
}

/// Asks a batch of the model.
fn serve(
    args: &Args,
    artifact: &Artifact,
    capacity: Capacity,
    arrivals: Arrivals,
    count: usize,
) -> Result<(Served, Batch), Failure> {
    let place = artifact.path().display().to_string();
    let model = super::super::load(artifact, &args.place, args.threads.first().copied())?;
    let load = &args.load;
    let vocab = model.manifest.model.vocab;
    let [prompt, shared, new] = [load.prompt, load.shared, load.new].map(super::size);
    let batch = Batch::new(model, capacity).map_err(|e| {
        Error::new(&place, e.to_string()).help("use fewer --clients, --sequences, or a smaller --prefix-cache")
    })?;
    if prompt.saturating_add(new) > batch.max_seq() {
        let text = format!("holds {} tokens, not a prompt of {prompt} and an answer of {new}", batch.max_seq());
        return Err(Error::new(&place, text).help("use smaller --prompt and --new").into());
    }
    let served = load::run(&batch, Shape { prompt, shared, new, vocab }, arrivals, count)?;
    Ok((served, batch))
}

/// What side by side reached, and could at best.
struct Gain {
    /// Against one after the other.
    gain: f64,
    at_best: f64,
    /// Tokens per second at best, by the step table.
    bound: f64,
    /// The part of that which was reached.
    reached: f64,
}

impl Line {
    fn gain(&self) -> Option<Gain> {
        let Self { arrivals: Arrivals::Closed(clients), alone, beside, steps: Some(steps), .. } = self else {
            return None;
        };
        let bound = beside.tokens as f64 / steps.at_best(&beside.passes, *clients);
        let one_by_one = alone.tokens as f64 / steps.at_best(&alone.passes, 1);
        let (gain, reached) = (beside.rate() / alone.rate(), beside.rate() / bound);
        Some(Gain { gain, at_best: bound / one_by_one, bound, reached })
    }
}

/// The time within which so many percent lie.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

fn to_text(args: &Args, lines: &[Line]) -> String {
    let columns = [
        ("load", Align::Left),
        ("", Align::Left),
        ("tokens/s", Align::Right),
        ("gain", Align::Right),
        ("at best", Align::Right),
        ("reached", Align::Right),
        ("rows/step", Align::Right),
        ("first text p50", Align::Right),
        ("p95", Align::Right),
        ("answer p50", Align::Right),
        ("p95", Align::Right),
    ];
    let rows = lines.iter().flat_map(|line| {
        let load = match line.arrivals {
            Arrivals::Closed(1) => "1 client".to_owned(),
            Arrivals::Closed(clients) => format!("{clients} clients"),
            Arrivals::Open(rate) => format!("{rate} a second"),
        };
        let row = |first: String, name: &str, served: &Served, gains: [String; 3]| {
            let times = [(&served.first, 50), (&served.first, 95), (&served.whole, 50), (&served.whole, 95)];
            let mut row = vec![first, name.to_owned(), format!("{:.1}", served.rate())];
            row.extend(gains);
            row.push(format!("{:.1}", served.rows as f64 / served.steps.max(1) as f64));
            row.extend(times.map(|(times, percent)| table::duration(percentile(times, percent))));
            row
        };
        let gains = line.gain().map_or_else(Default::default, |g| {
            [format!("{:.2} ×", g.gain), format!("{:.2} ×", g.at_best), format!("{:.0} %", 100.0 * g.reached)]
        });
        [
            row(load, "one by one", &line.alone, Default::default()),
            row(String::new(), "side by side", &line.beside, gains),
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let knees: Vec<String> = lines.iter().map(|line| line.step_rows.to_string()).collect();
    let prefix = match lines.first().map(|line| line.prefix) {
        Some(PrefixCache::On { rows, .. }) => {
            let (held, all) = lines.iter().fold((0, 0), |(held, all), line| {
                (held + line.beside.held, all + line.beside.requests * super::size(args.load.prompt))
            });
            format!("{rows} rows are kept for prompts: {held} of {all} tokens were there already")
        }
        Some(PrefixCache::Off(why)) => format!("no rows are kept for prompts: {why}"),
        None => String::new(),
    };
    format!(
        "prompts of {} tokens, {} of them the same, answers of {}\n\n{}\nat best: what the step table of this run allows; reached: the \
         part of it\nsteps are filled up to {} rows; {prefix}\n",
        args.load.prompt,
        args.load.shared.min(args.load.prompt),
        args.load.new,
        table::table(&columns, &rows),
        knees.join(", "),
    )
}

fn to_json(args: &Args, artifact: &str, lines: &[Line]) -> Value {
    let served = |served: &Served| {
        let times = |times: &[Duration]| {
            let at = |percent: usize| percentile(times, percent).as_secs_f64();
            json!({"p50": at(50), "p95": at(95), "p99": at(99)})
        };
        json!({
            "seconds": served.time.as_secs_f64(),
            "requests": served.requests,
            "tokens": served.tokens,
            "held_tokens": served.held,
            "tokens_per_second": served.rate(),
            "steps": served.steps,
            "rows": served.rows,
            "first_text_seconds": times(&served.first),
            "answer_seconds": times(&served.whole),
        })
    };
    let line = |line: &Line| {
        let load = match line.arrivals {
            Arrivals::Closed(clients) => json!({"clients": clients}),
            Arrivals::Open(rate) => json!({"rate": rate}),
        };
        let steps = line.steps.iter().flat_map(|steps| &steps.of).map(|(&(rows, looked), costs)| {
            let costs = costs.iter().map(|(passes, seconds)| json!({"passes": passes, "seconds": seconds}));
            let count = line.beside.passes.get(&(rows, looked)).copied().unwrap_or(0);
            json!({"rows": rows, "looked_at": looked, "count": count, "steps": costs.collect::<Vec<_>>()})
        });
        let (rows, off) = match line.prefix {
            PrefixCache::On { rows, .. } => (rows, None),
            PrefixCache::Off(why) => (0, Some(why)),
        };
        let gain = line.gain();
        json!({
            "load": load,
            "one_by_one": served(&line.alone),
            "side_by_side": served(&line.beside),
            "gain": gain.as_ref().map(|g| g.gain),
            "gain_at_best": gain.as_ref().map(|g| g.at_best),
            "tokens_per_second_at_best": gain.as_ref().map(|g| g.bound),
            "reached": gain.as_ref().map(|g| g.reached),
            "step_rows": line.step_rows,
            "prefix_rows": rows,
            "prefix_off": off,
            "step_table": steps.collect::<Vec<_>>(),
        })
    };
    json!({
        "artifact": artifact,
        "prompt": args.load.prompt,
        "shared": args.load.shared.min(args.load.prompt),
        "new": args.load.new,
        "lines": lines.iter().map(line).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let times: Vec<Duration> = (1..=20).rev().map(Duration::from_millis).collect();
        assert_eq!([50, 95, 100].map(|p| percentile(&times, p).as_millis()), [10, 19, 20]);
        assert_eq!(percentile(&times[..1], 95), times[0]);
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
