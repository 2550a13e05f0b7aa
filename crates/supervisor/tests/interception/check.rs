//! A check that says where it failed and what it found.

macro_rules! ensure {
    ($test:expr) => {
        if !$test {
            return Err(format!("line {}: {}", line!(), stringify!($test)).into());
        }
    };
}

macro_rules! ensure_eq {
    ($left:expr, $right:expr) => {
        match (&$left, &$right) {
            (left, right) if *left == *right => {}
            (left, right) => {
                let text = stringify!($left);
                return Err(format!("line {}: {text} is {left:?}, not {right:?}", line!()).into());
            }
        }
    };
}

pub(crate) use {ensure, ensure_eq};
