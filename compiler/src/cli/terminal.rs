//! The process's terminal: Ctrl-C, stdout that may close, progress on stderr.
//!
//! Invariant: the first Ctrl-C only sets a flag, which long work polls, so everything unwinds and cleans up after itself;
//! the second one ends the process at once. Whoever ended the work and goes on with something else forgets the first.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use dlx_ir::Error;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Failure;
use super::canvas::Size;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes the first Ctrl-C (or termination signal) set the flag of [`interrupted`], the second one exit with 130.
pub fn catch_interrupts() {
    // A second handler in one process is refused; the first one does the same.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            #[allow(clippy::exit, reason = "the user asked twice, and the first request is stuck")]
            std::process::exit(130);
        }
    });
}

/// Whether Ctrl-C was pressed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Makes the next Ctrl-C the first one again.
pub fn forget_interrupt() {
    INTERRUPTED.store(false, Ordering::Relaxed);
}

/// The flag of [`interrupted`], for work that polls it itself.
pub fn interrupt_flag() -> &'static AtomicBool {
    &INTERRUPTED
}

/// Writes a prompt to stderr, without a line feed.
pub fn prompt(text: &str) {
    let mut err = io::stderr();
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

/// Writes a line to stderr; a closed stderr is nobody's loss.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Writes to stdout.
///
/// # Errors
/// [`Failure::ClosedPipe`] when nobody reads it any more, [`Failure::Error`] when it cannot be written otherwise.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| stdout_failure(&e))
}

/// What a failed write to stdout means.
pub fn stdout_failure(e: &io::Error) -> Failure {
    match e.kind() {
        io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
        _ => Failure::Error(Error::new("standard output", format!("cannot be written: {e}"))),
    }
}

/// Size of the terminal that stdout is, `None` when it is a file or a pipe.
pub fn stdout_size() -> Option<Size> {
    if !io::stdout().is_terminal() || std::env::var_os("TERM").is_some_and(|t| t == "dumb") {
        return None;
    }
    let (columns, rows) = terminal_size::terminal_size_of(io::stdout())?;
    Some(Size { columns: columns.0.into(), rows: rows.0.into() })
}

/// A bar for bytes written, on stderr; invisible when that is not a terminal.
pub fn byte_progress(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .expect("the template is a constant that a test renders");
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style).with_message(what.to_owned())
}

/// A bar for things done one after the other, on stderr; invisible when that is not a terminal.
pub fn count_progress(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}")
        .expect("the template is a constant that a test renders");
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style).with_message(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_template_is_valid() {
        byte_progress("writing").finish();
        count_progress("measuring").finish();
    }

    #[test]
    fn a_closed_pipe_is_not_an_error() {
        assert!(matches!(stdout_failure(&io::ErrorKind::BrokenPipe.into()), Failure::ClosedPipe));
        assert!(matches!(stdout_failure(&io::ErrorKind::StorageFull.into()), Failure::Error(_)));
    }
}
