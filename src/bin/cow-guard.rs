//! Loads the guard into the kernel; see `cow_hooks::cli::guard`.

fn main() -> cow_hooks::exit::Exit {
    cow_hooks::cli::guard::main()
}
