//! What the server counts, for Prometheus.
//!
//! Invariant: labels are endpoints, statuses, the names of models and reasons of our own, never what a client sent.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use dlx_runtime::batch::PrefixCache;

use crate::App;
use crate::choices::Used;
use crate::models::Loaded;

type Labels = Vec<(&'static str, String)>;

/// See the module.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: Family<Labels, Counter>,
    prompt_tokens: Family<Labels, Counter>,
    completion_tokens: Family<Labels, Counter>,
}

impl Metrics {
    /// Counts an answered request.
    pub(crate) fn request(&self, path: &'static str, status: u16) {
        self.requests.get_or_create(&vec![("path", path.to_owned()), ("status", status.to_string())]).inc();
    }

    /// Counts tokens.
    pub(crate) fn used(&self, model: &str, used: &Used, n: usize) {
        let labels = vec![("model", model.to_owned())];
        self.prompt_tokens.get_or_create(&labels).inc_by(used.prompt_tokens(n) as u64);
        self.completion_tokens.get_or_create(&labels).inc_by(used.completion_tokens() as u64);
    }

    /// Counts tokens that were read and answered with none.
    pub(crate) fn read(&self, model: &str, tokens: usize) {
        self.prompt_tokens.get_or_create(&vec![("model", model.to_owned())]).inc_by(tokens as u64);
    }

    /// Everything, with what the batches say of themselves now.
    pub(crate) fn text(app: &App) -> String {
        let Self { requests, prompt_tokens, completion_tokens } = &app.metrics;
        let mut registry = Registry::with_prefix("dlxc");
        registry.register("requests", "Answered HTTP requests", requests.clone());
        registry.register("prompt_tokens", "Tokens of answered prompts", prompt_tokens.clone());
        registry.register("completion_tokens", "Tokens of answers", completion_tokens.clone());
        let gauge = |registry: &mut Registry, name: &str, help: &str| {
            let family = Family::<Labels, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        let running = gauge(&mut registry, "requests_running", "Requests in slots of the caches");
        let waiting = gauge(&mut registry, "requests_waiting", "Requests that wait for a slot");
        let taken = gauge(&mut registry, "cache_slots_taken", "Cache slots of running requests");
        let slots = gauge(&mut registry, "cache_slots", "Cache slots");
        // Routers that choose a replica by its load read one number from 0 to 1.
        let usage = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        registry.register("cache_usage_ratio", "Part of the cache slots that is taken", usage.clone());
        let (steps, rows) = (Family::<Labels, Counter>::default(), Family::<Labels, Counter>::default());
        registry.register("steps", "Forward passes over all sequences at once", steps.clone());
        registry.register("step_rows", "Rows of these passes", rows.clone());
        let prefix = gauge(&mut registry, "prefix_cache_on", "Whether rows are kept for prompts that begin alike");
        let prefix_rows = gauge(&mut registry, "prefix_cache_rows", "Cache rows for prompts that begin alike");
        let prefix_kept = gauge(&mut registry, "prefix_cache_rows_taken", "Those of them that hold something");
        let reused = Family::<Labels, Counter>::default();
        registry.register("reused_tokens", "Tokens of prompts whose rows were there already", reused.clone());
        let set = |family: &Family<Labels, Gauge>, labels: &Labels, value: usize| {
            family.get_or_create(labels).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        for (name, served) in app.models.all().into_iter().flatten() {
            let Loaded::Generator(batch) = &served.model else { continue };
            let (labels, load) = (vec![("model", name.clone())], batch.load());
            set(&running, &labels, load.running);
            set(&waiting, &labels, load.waiting);
            set(&taken, &labels, load.slots_taken);
            set(&slots, &labels, load.slots);
            usage.get_or_create(&labels).set(load.slots_taken as f64 / load.slots.max(1) as f64);
            steps.get_or_create(&labels).inc_by(load.steps);
            rows.get_or_create(&labels).inc_by(load.rows);
            reused.get_or_create(&labels).inc_by(load.reused_tokens);
            let (on, most, why) = match batch.prefix_cache() {
                PrefixCache::On { rows, .. } => (1, rows, ""),
                PrefixCache::Off(why) => (0, 0, why),
            };
            set(&prefix, &vec![("model", name), ("reason", why.to_owned())], on);
            set(&prefix_rows, &labels, most);
            set(&prefix_kept, &labels, load.prefix_rows);
        }
        let mut text = String::new();
        encode(&mut text, &registry).expect("a string takes everything");
        text
    }
}
