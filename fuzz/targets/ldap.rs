//! See [`matrix_stack_fuzz::ldap`].
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| matrix_stack_fuzz::ldap(data));

/// Without the engine: reads one input.
#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    let mut data = Vec::new();
    std::io::Read::read_to_end(&mut std::io::stdin(), &mut data)?;
    matrix_stack_fuzz::ldap(&data);
    Ok(())
}
