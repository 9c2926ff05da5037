//! Makes equal files of guests one inode; see `cow_hooks::cli::unify`.

fn main() -> cow_hooks::exit::Exit {
    cow_hooks::cli::unify::main()
}
