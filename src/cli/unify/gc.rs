pub fn run(_: bool, _: &super::Common) -> anyhow::Result<crate::exit::Exit> {
    Ok(crate::exit::Exit::Done)
}
