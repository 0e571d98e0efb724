//! The example runs, says what it should, and stays as short as it claims to be.

use std::process::Command;

#[test]
fn the_example_says_who_may_export_and_why() {
    let output = Command::new(env!("CARGO_BIN_EXE_own-tenants")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    let [free, no, pro, yes] = lines[..] else { panic!("{said}") };
    assert!(
        free.contains("is off") && free.contains("`pro` is the first plan that does") && free.ends_with(" 1 seats"),
        "{free}"
    );
    assert!(pro.contains("plan `pro` version 1 grants it") && pro.ends_with(" 10 seats"), "{pro}");
    assert_eq!([no, yes], ["may export: false", "may export: true"]);
}

#[test]
fn the_example_is_under_eighty_lines() {
    assert!(include_str!("../src/main.rs").lines().count() < 80);
}
