//! Shows which files are unified; see `cow_hooks::cli::status`.

fn main() -> cow_hooks::exit::Exit {
    cow_hooks::cli::status::main()
}
