//! The `dlxc` binary; everything is in [`dlxc::cli`].

fn main() -> std::process::ExitCode {
    dlxc::cli::main(std::env::args_os())
}
