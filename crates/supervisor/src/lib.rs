//! Floor 8: interception of a program: namespaces, synthetic /dev and /sys, seccomp notification
