//! Compiles the programs of the guard for the kernel, if the feature `guard` is on: that alone needs clang.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

const SOURCE: &str = "src/guard/bpf/guard.bpf.c";
/// All warnings are errors; `-g` makes the type information that fits the program to the running kernel.
const FLAGS: [&str; 10] =
    ["-g", "-O2", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror", "-fno-ident", "-c"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_GUARD").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CLANG");
    if let Err(e) = compile() {
        println!("cargo::error={e}");
    }
}

fn compile() -> Result<(), String> {
    let variable = |name: &str| env::var(name).map_err(|e| format!("{name}: {e}"));
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let object = Path::new(&variable("OUT_DIR")?).join("guard.bpf.o");
    let architecture = format!("-DARCH_{}", variable("CARGO_CFG_TARGET_ARCH")?);
    let root = variable("CARGO_MANIFEST_DIR")?;
    let remap = format!("-ffile-prefix-map={root}/=");
    let arguments = FLAGS.iter().copied().chain([architecture.as_str(), &remap, SOURCE, "-o"]);
    let run = Command::new(&clang).current_dir(root).args(arguments).arg(&object).output();
    let output = run.map_err(|e| {
        format!(
            "{clang}: {e}. The feature `guard` compiles {SOURCE} for the kernel. Install clang 14 or newer (Debian: \
             clang; Fedora: clang), or name it in the variable CLANG, or build without the feature"
        )
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{clang} cannot compile {SOURCE}: {}", said.trim().replace('\n', "; ")));
    }
    match fs::metadata(&object) {
        Ok(made) if made.len() > 0 => Ok(()),
        _ => Err(format!("{clang} made no object of {SOURCE}")),
    }
}
