//! The shape of this workspace, as its manifests give it.

use std::process::Command;

use xtask::{errors, floors::House, workspace::root};

fn house() -> House {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let text = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
    House::from_metadata(&text).unwrap_or_else(|error| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        panic!("{error:#}\n{stderr}")
    })
}

#[test]
fn every_dependency_between_crates_points_strictly_down() {
    let house = house();
    assert!(
        house.on_floors() >= 10,
        "the floors are not read: {house:?}"
    );
    assert_eq!(house.breaches(), Vec::<String>::new());
}

#[test]
fn every_path_between_folders_points_down_and_no_cycle_of_imports_grows() {
    let (breaches, _) = house().inside().expect("the sources are read");
    assert_eq!(breaches, Vec::<String>::new());
}

#[test]
fn the_client_depends_on_no_crate_of_the_workspace() {
    let none: Option<&[String]> = Some(&[]);
    assert_eq!(house().dependencies("passthrough-client"), none);
}

#[test]
fn no_error_says_its_source_and_returns_it_too() {
    let breaches = errors::said_twice(&root()).expect("the sources are read");
    assert_eq!(breaches, Vec::<String>::new());
}
