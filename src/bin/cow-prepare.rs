//! Gives unified files private copies; see `cow_hooks::cli::prepare`.

fn main() -> cow_hooks::exit::Exit {
    cow_hooks::cli::prepare::main()
}
