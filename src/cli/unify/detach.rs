pub fn run(_: &std::path::Path, _: &super::Common) -> anyhow::Result<crate::exit::Exit> {
    Ok(crate::exit::Exit::Done)
}
