//! Runs a command with copy on write; see `cow_hooks::cli::run`.

fn main() -> std::process::ExitCode {
    cow_hooks::cli::run::main()
}
