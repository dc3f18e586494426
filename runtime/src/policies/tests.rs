//! Sections that can be read and those that cannot, and what is picked from them.

use super::*;
use crate::decode::Reveal;

fn point(threshold: f32, agreement: f64, seconds: f64, passes: f64) -> Point {
    // Numbers with few digits, which JSON gives back to the last bit.
    let short = |x: f64| (1e3 * x).round() / 1e3;
    let around = |mean: f64| Interval {
        mean,
        low: short(0.9 * mean),
        high: short((1.1 * mean).min(if mean <= 1.0 { 1.0 } else { 1e3 })),
    };
    let reveal = Reveal::new("threshold").with("threshold", threshold);
    Point {
        settings: Settings { reveal, steps: 4, block: 4, cache: CacheMode::CommitBlock, draft: None },
        agreement: around(agreement),
        seconds: around(seconds),
        passes: around(passes),
        cost: Cost { prompt_token: 0.01, pass: 0.1, answer: seconds, position: seconds / 16.0, rows: 20.0 },
    }
}

fn policies() -> Policies {
    let points = vec![
        point(0.5, 0.7, 0.2, 4.0),
        point(0.9, 0.95, 0.5, 8.0),
        point(0.95, 0.9, 0.6, 7.0),
        point(0.99, 0.99, 0.9, 16.0),
    ];
    Policies { version: VERSION, reference: Reference::Answers, prompts: 40, device: "here".into(), probe: 0.1, points }
}

fn changed(edit: impl Fn(&mut serde_json::Value)) -> Result<Policies, String> {
    let mut value = serde_json::to_value(policies()).unwrap();
    edit(&mut value);
    Policies::read(&value.to_string())
}

#[test]
fn a_section_reads_as_it_was_written() {
    assert_eq!(changed(|_| {}), Ok(policies()));
    assert_eq!((policies().by_seconds(), policies().by_passes()), (vec![0, 1, 3], vec![0, 2, 1, 3]));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let says = |what: &str, edit: &dyn Fn(&mut serde_json::Value)| {
        let error = changed(edit).unwrap_err();
        assert!(error.contains(what), "{error}");
    };
    says("version 2", &|v| {
        v["version"] = 2.into();
        v["new"] = 1.into();
    });
    says("unknown field `new`", &|v| v["new"] = 1.into());
    says("no rule `guess`", &|v| v["points"][1]["settings"]["reveal"]["rule"] = "guess".into());
    says("no parameter `bound`", &|v| v["points"][1]["settings"]["reveal"]["bound"] = 1.into());
    says("steps and its block", &|v| v["points"][0]["settings"]["steps"] = 0.into());
    says("agreement is no interval", &|v| v["points"][0]["agreement"]["mean"] = 1.5.into());
    says("agreement is no interval", &|v| v["points"][0]["agreement"]["low"] = 0.71.into());
    says("seconds is no interval", &|v| v["points"][0]["seconds"]["high"] = 1e300.into());
    says("its cost", &|v| v["points"][2]["cost"]["answer"] = (-1.0).into());
    says("its cost", &|v| v["points"][2]["cost"]["rows"] = 0.into());
    says("probe", &|v| v["probe"] = 0.into());
    says("point 2 is on neither front", &|v| v["points"][2]["passes"] = v["points"][3]["passes"].clone());
    says("order of their seconds", &|v| v["points"].as_array_mut().unwrap().reverse());
    says("0 points", &|v| v["points"] = serde_json::json!([]));
    says("2000 points", &|v| v["points"] = vec![v["points"][0].clone(); 2000].into());
    assert!(Policies::read("{").is_err() && Policies::read("[]").is_err() && Policies::read("").is_err());
}

#[test]
fn each_aim_gets_the_cheapest_point_that_does_it() {
    let call = Call { prompt: 10, max_new: 64 };
    let pick = |aim, pace| policies().pick(aim, &call, pace).map(|c| (c.point, c.fits));
    assert_eq!(pick(Aim::Fast, 1.0), Ok((0, true)));
    assert_eq!(pick(Aim::Best, 1.0), Ok((3, true)));
    assert_eq!(
        pick(Aim::Balanced, 1.0),
        Ok((1, true)),
        "0.95 cannot be told from 0.99, whose interval begins at 0.891"
    );
    assert_eq!(pick(Aim::AtLeast(0.8), 1.0), Ok((1, true)));
    assert_eq!(pick(Aim::AtLeast(0.95), 1.0), Ok((1, true)));
    assert!(pick(Aim::AtLeast(0.995), 1.0).unwrap_err().contains("0.990"));
    // A prompt of ten tokens takes 0.1 s.
    let within = |seconds: f64| Aim::Within(Duration::from_secs_f64(seconds));
    assert_eq!(pick(within(1.1), 1.0), Ok((3, true)));
    assert_eq!(pick(within(0.9), 1.0), Ok((1, true)));
    assert_eq!(pick(within(1.1), 2.0), Ok((0, true)), "half as fast");
    assert_eq!(pick(within(0.2), 1.0), Ok((0, false)), "the fastest stands in");
    let short = Call { prompt: 10, max_new: 4 };
    assert_eq!(policies().pick(within(0.4), &short, 1.0).unwrap().point, 3, "one block of four costs a quarter");
}

#[test]
fn passes_over_whole_sequences_grow_with_them() {
    let mut point = point(0.9, 0.9, 1.0, 8.0);
    let call = |prompt| Call { prompt, max_new: 20 };
    let fixed = point.seconds_of(&call(60));
    point.settings.cache = CacheMode::Dual;
    assert!((point.seconds_of(&call(60)) - (0.6 + 4.0)).abs() < 1e-9, "{}", point.seconds_of(&call(60)));
    assert!((fixed - 1.6).abs() < 1e-9, "{fixed}");
    assert!((point.seconds_of(&call(0)) - 1.0).abs() < 1e-9);
}
