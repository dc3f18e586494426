//! A conversation with a model: its turns, and the commands of `dlxc run --chat`.
//!
//! Invariant: a turn or command that is refused changes nothing, and nothing but answers goes to stdout. How lines are
//! read, understood and kept is in the files beside this one.

pub mod commands;
pub mod input;
pub mod saved;
pub mod settings;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dlx_ir::Error;
use dlx_runtime::constrain::Constraint;
use dlx_runtime::decode::FinishReason;
use dlx_runtime::session::{Event, Prompt, Report, Request, Session, SessionError, Speculate};
use dlx_runtime::text::{Message, Tokenizer};
use dlx_runtime::trace::About;

use self::commands::{COMMANDS, ESCAPE, Line};
use self::input::Input;
use self::saved::{Said, Saved};
use super::canvas::{Canvas, Cell};
use super::run::{Args, Decode, as_json, statistics};
use super::trace::Recording;
use super::{Failure, Opened, hybrid, table, terminal};

/// The conversation so far. One turn of `dlxc run` is a conversation that ends.
pub struct Conversation<'a> {
    args: &'a Args,
    /// The settings; at first those of the command line.
    decode: Decode,
    session: Session,
    speculate: Option<Speculate>,
    /// What answers must be.
    constraint: Option<Arc<Constraint>>,
    device: String,
    replaced: Vec<String>,
    notes: Vec<String>,
    /// How long opening took.
    opened: Duration,
    /// What a trace says of the model; an export has none.
    about: Option<About>,
    system: Option<String>,
    /// Questions and answers in turn.
    messages: Vec<Message>,
    /// Statistics of the last answer.
    last: Option<String>,
    /// Whether Ctrl-C ends an answer and not the conversation.
    survives: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// When the model cannot be loaded or run, or there is no prompt; on Ctrl-C.
pub fn run(args: &Args) -> Result<(), Failure> {
    // What was typed comes first: no compile for a missing prompt.
    let first = if args.chat { args.prompt.clone() } else { Some(args.prompt()?) };
    args.hybrid.speculate()?;
    let grammar = args.grammar()?;
    let mut opened = super::open(&args.model, args.quant, &args.place, args.decode.threads)?;
    let speculate = args.hybrid.prepare(&mut opened.session, args.quant, &args.place, args.decode.threads)?;
    let mut chat = Conversation::new(args, opened, speculate);
    if let Some(grammar) = grammar {
        let place = args.schema.as_ref().map_or("--regex".to_owned(), |path| path.display().to_string());
        let constraint = chat.session.constraint(&grammar).map_err(|e| Error::new(place, e.to_string()))?;
        chat.constraint = Some(constraint);
    }
    if args.deadline.is_some() {
        // A deadline begins with its turn, and finding the pace shall not be part of it.
        chat.session.measure_pace().map_err(|e| Error::new(args.model.display(), e.to_string()))?;
    }
    if let Some(prompt) = first {
        chat.answer(&prompt)?;
    }
    if args.chat { chat.go_on() } else { Ok(()) }
}

impl<'a> Conversation<'a> {
    /// One with a model.
    fn new(args: &'a Args, opened: Opened, speculate: Option<Speculate>) -> Self {
        let Opened { session, device, replaced, notes, opened, about } = opened;
        Self {
            args,
            decode: args.decode.clone(),
            session,
            speculate,
            constraint: None,
            device,
            replaced,
            notes,
            opened,
            about,
            system: args.system.clone(),
            messages: Vec::new(),
            last: None,
            survives: false,
        }
    }

    /// Takes turns and commands from standard input until it ends.
    ///
    /// # Errors
    /// When the model or the input fails; on Ctrl-C.
    pub fn go_on(mut self) -> Result<(), Failure> {
        let mut input = Input::open(settings::values(&self.decode).into_iter().map(|(name, _)| name).collect());
        self.survives = input.is_editor();
        loop {
            let line = input.turn()?;
            if terminal::interrupted() {
                return Err(Failure::Interrupted);
            }
            let done = match line {
                None => return Ok(()),
                Some(line) => match line.and_then(|line| commands::parse(&line)) {
                    Ok(Line::Quit) => return Ok(()),
                    Ok(Line::Message(text)) => {
                        self.answer(&text)?;
                        Ok(())
                    }
                    Ok(command) => self.obey(command),
                    Err(e) => Err(e),
                },
            };
            if let Err(e) = done {
                terminal::note(&format!("error: {e}"));
            }
        }
    }

    /// Does what a command says. Whatever it tells goes to stderr, where it is in no answer's way.
    fn obey(&mut self, command: Line) -> Result<(), Error> {
        match command {
            Line::Empty | Line::Message(_) | Line::Quit => {}
            Line::Help => terminal::note(&self.help()),
            Line::Reset => {
                self.messages.clear();
                terminal::note("the conversation is forgotten");
            }
            Line::System(None) => terminal::note(self.system.as_deref().unwrap_or("there is no system message")),
            Line::System(Some(text)) if text == commands::NOTHING => {
                self.system = None;
                terminal::note("there is no system message any more");
            }
            Line::System(text) => {
                self.system = text;
                terminal::note("the system message is set");
            }
            Line::Set(None) => self.show(None)?,
            Line::Set(Some((name, value))) => {
                if let Some(value) = value {
                    let decode = settings::with(&self.decode, &name, &value).and_then(|decode| self.checked(decode));
                    self.decode = decode.map_err(|e| Error { place: "/set".into(), ..e })?;
                }
                self.show(Some(&name))?;
            }
            Line::Stats => {
                terminal::note(self.last.as_ref().ok_or_else(|| Error::new("/stats", "there is no answer yet"))?);
            }
            Line::Save(path) => {
                let said = self.messages.iter().map(|message| Said {
                    role: message.role.clone(),
                    content: message.content.as_ref().and_then(|text| text.as_str()).unwrap_or_default().to_owned(),
                });
                Saved::new(self.system.clone(), said.collect(), settings::values(&self.decode)).write(&path)?;
                terminal::note(&format!("saved {} messages in {}", self.messages.len(), path.display()));
            }
            Line::Load(path) => {
                let saved = Saved::read(&path)?;
                let decode = settings::read(&self.decode, &saved.settings).and_then(|decode| self.checked(decode));
                self.decode = decode.map_err(|e| Error::new(path.display(), format!("its settings: {e}")))?;
                self.system = saved.system;
                self.messages = saved.messages.iter().map(|said| Message::new(&said.role, &said.content)).collect();
                terminal::note(&format!("loaded {} messages from {}", self.messages.len(), path.display()));
            }
        }
        Ok(())
    }

    /// Tells the settings in use, or one of them.
    fn show(&self, name: Option<&str>) -> Result<(), Error> {
        let key = name.map(settings::key);
        let mut rows = settings::in_use(&self.decode, self.session.policy());
        rows.retain(|(row, _)| key.as_ref().is_none_or(|key| key == row));
        if let (Some(name), true) = (name, rows.is_empty()) {
            return Err(settings::unknown(name, &self.decode));
        }
        rows.iter().for_each(|(name, value)| terminal::note(&format!("{name:<12} {value}")));
        Ok(())
    }

    fn help(&self) -> String {
        let commands =
            COMMANDS.iter().map(|(name, argument, does)| format!("{:<20} {does}", format!("{name} {argument}")));
        let escape = format!("{ESCAPE}; a line that ends in \\ goes on in the next one");
        let about = settings::about(&self.decode).into_iter().map(|(name, does)| format!("  {name:<18} {does}"));
        let all: Vec<_> = commands.chain([escape, "settings:".into()]).chain(about).collect();
        all.join("\n")
    }

    /// Settings that the model can run with.
    fn checked(&self, decode: Decode) -> Result<Decode, Error> {
        let checked = self.session.check(&decode.overrides(self.session.policy()));
        checked.map_err(|e| Error::new("", e.to_string()))?;
        Ok(Decode { threads: self.decode.threads, ..decode })
    }

    /// What the session is asked.
    fn request(&self, prompt: &str) -> Request {
        let args = self.args;
        let prompt = if args.raw {
            Prompt::Text(prompt.to_owned())
        } else {
            let system = self.system.iter().map(|text| Message::new("system", text));
            let messages = system.chain(self.messages.iter().cloned()).chain([Message::new("user", prompt)]).collect();
            Prompt::Chat { messages, variables: serde_json::Map::new() }
        };
        let mut request = Request::new(prompt, self.decode.max_new(self.session.policy()));
        request.overrides = self.decode.overrides(self.session.policy());
        request.aim = args.aim();
        // A measured setting says how much is drafted, unless the command line does.
        let measured = args.aim().is_some() && args.hybrid.speculate.is_none();
        request.speculate = self.speculate.filter(|_| !measured);
        request.constraint = self.constraint.clone();
        request.deadline = args.timeout.map(|t| Instant::now() + t);
        (request.allow_special, request.no_prefix, request.keep) = (args.allow_special, args.no_bos, args.chat);
        request
    }

    /// Answers one turn. One that cannot be answered is refused, and the conversation goes on without it.
    ///
    /// # Errors
    /// When the model fails, the only turn is refused, or stdout is closed; on Ctrl-C.
    pub fn answer(&mut self, prompt: &str) -> Result<(), Failure> {
        let args = self.args;
        let request = self.request(prompt);
        let report = match self.generate(&request)? {
            Ok(report) => report,
            Err(e) => {
                let mut error = Error::new(args.model.display(), e.to_string());
                if !self.messages.is_empty() {
                    error = error.help("the prompt is the whole conversation: /reset forgets what was said so far");
                }
                if !args.chat || !e.is_about_prompt() {
                    return Err(error.into());
                }
                terminal::note(&format!("error: {error}"));
                return Ok(());
            }
        };
        if report.finish == FinishReason::Cancelled && terminal::interrupted() {
            if !self.survives {
                return Err(Failure::Interrupted);
            }
            terminal::forget_interrupt();
            terminal::note("interrupted: this turn is forgotten");
            return Ok(());
        }
        if args.json {
            let mut report = as_json(&report);
            report["device"] = self.device.clone().into();
            report["replaced_kernels"] = self.replaced.clone().into();
            report["notes"] = self.notes.clone().into();
            report["open_ms"] = (self.opened.as_secs_f64() * 1e3).into();
            report["peak_resident_bytes"] = super::bench::peak_resident().into();
            terminal::print(&format!("{report:#}\n"))?;
        }
        if !report.prefix.is_empty() {
            let prefix = self.session.tokenizer().decode(&report.prefix, false).unwrap_or_default();
            terminal::note(&format!(
                "note: the prompt begins with {prefix}, as the tokenizer says; --no-bos leaves it out"
            ));
        }
        if report.finish == FinishReason::ContextFull {
            terminal::note("note: the answer ends because the caches are full; compile with a larger --max-seq");
        }
        report.speculation.iter().for_each(hybrid::note);
        let statistics =
            format!("{}; on {}; opened in {}", statistics(&report), self.device, table::duration(self.opened));
        if args.stats {
            terminal::note(&statistics);
        }
        self.last = Some(statistics);
        self.messages.extend([Message::new("user", prompt), Message::new("assistant", &report.text)]);
        Ok(())
    }

    /// Generates with a live view on a terminal, plain streamed text off it, and silently for JSON.
    fn generate(&mut self, request: &Request) -> Result<Result<Report, SessionError>, Failure> {
        let size = if self.args.json { None } else { terminal::stdout_size() };
        let mut canvas = Canvas::new(std::io::stdout().lock(), size);
        let mut broken = None;
        let (json, mask) = (self.args.json, self.session.policy().mask_id);
        let tokenizer = self.session.tokenizer();
        let mut previous: Vec<i32> = Vec::new();
        let mut recording = match &self.args.trace {
            Some(path) => Some(Recording::create(path, self.about.clone())?),
            None => None,
        };
        let mut unrecorded = None;
        let report = self.session.generate(request, &mut |event| {
            if let Some(recording) = &mut recording {
                unrecorded = recording.take(&event).err();
                if unrecorded.is_some() {
                    return ControlFlow::Break(());
                }
            }
            let shown = match event {
                Event::Text(text) if !json => canvas.stable(text),
                Event::Canvas { ids, block, .. } if size.is_some() => {
                    let now = &ids[block];
                    let texts = texts(&tokenizer, now);
                    let cells = now.iter().zip(&texts).enumerate().map(|(i, (id, text))| match previous.get(i) {
                        _ if *id == mask => Cell::Masked,
                        Some(old) if old == id => Cell::Known(text),
                        _ => Cell::Fresh(text),
                    });
                    let drawn = canvas.draw(&cells.collect::<Vec<_>>());
                    previous = now.to_vec();
                    drawn
                }
                Event::Drafted { tokens } if size.is_some() => {
                    let texts = texts(&tokenizer, tokens);
                    canvas.draw(&texts.iter().map(|text| Cell::Fresh(text)).collect::<Vec<_>>())
                }
                // What is accepted is about to become text: only what is not is left to be shown.
                Event::Judged { drafted, accepted, tokens } if size.is_some() => {
                    let kept = texts(&tokenizer, tokens);
                    let lost = texts(&tokenizer, drafted.get(accepted..).unwrap_or_default());
                    let cells = kept.iter().map(|text| Cell::Known(text)).chain(lost.iter().map(|t| Cell::Rejected(t)));
                    canvas.draw(&cells.collect::<Vec<_>>())
                }
                Event::Committed { .. } => {
                    previous.clear();
                    Ok(())
                }
                _ => Ok(()),
            };
            broken = shown.err();
            if broken.is_some() || terminal::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        // Off a terminal nothing has been written before an error, and nothing shall be.
        let silent = json || (report.is_err() && size.is_none());
        let finished = if silent { Ok(()) } else { canvas.finish().map(drop) };
        if let Some(e) = broken.or(finished.err()) {
            return Err(terminal::stdout_failure(&e));
        }
        if let Some(e) = unrecorded {
            return Err(e.into());
        }
        if let (Some(recording), Ok(report), false) = (recording, &report, terminal::interrupted()) {
            recording.finish(report, &tokenizer)?;
        }
        Ok(report)
    }
}

/// Each token's text alone.
fn texts(tokenizer: &Tokenizer, ids: &[i32]) -> Vec<String> {
    ids.iter().map(|id| tokenizer.decode(&[*id], true).unwrap_or_default()).collect()
}
