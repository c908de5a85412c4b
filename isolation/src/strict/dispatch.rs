//! What becomes of a trapped system call: plain decisions on numbers, so that they can be tested without a signal.
//!
//! Most calls run in the stub and go on where they were made. A few would break there: those that return to a signal frame, that set
//! the mask by which our own signals could be shut out, or that share a stack with a child.
#![forbid(unsafe_code)]

/// How a trapped call goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// In the stub, and back.
    Resume,
    /// The same, once the child may have this thread's stack.
    Fork,
    /// In the stub; the child begins on a stack of its own, which ends here.
    CloneWithStack(u64),
    /// The end of another handler, which glibc's own code makes: the same from the stub.
    Sigreturn,
    /// Done by the handler, in the saved mask, without our signals.
    Mask,
    /// Where it was made, with the gate open until the thread's next turn: parent and child share what the stub would need.
    InPlace,
}

const CLONE_VM: u64 = libc::CLONE_VM as u64;
/// Bytes of the first `struct clone_args` (`linux/sched.h`).
const CLONE_ARGS_BYTES: u64 = 64;

/// The parts of `struct clone_args` that matter here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CloneArgs {
    pub(super) flags: u64,
    pub(super) stack: u64,
    pub(super) stack_bytes: u64,
}

/// Decides. `clone_args` reads the structure that `clone3(2)` is given.
pub(super) fn way(number: i64, arguments: [u64; 4], clone_args: impl FnOnce(u64) -> CloneArgs) -> Way {
    let [first, second, _, fourth] = arguments;
    let clone = |flags: u64, stack: u64| match stack {
        0 if flags & CLONE_VM == 0 => Way::Fork,
        0 => Way::InPlace,
        // Where the kernel refuses such a stack, nobody must have written to it either.
        stack if stack < 4096 => Way::InPlace,
        stack => Way::CloneWithStack(stack),
    };
    match number {
        libc::SYS_rt_sigreturn => Way::Sigreturn,
        // Of another size the kernel takes none.
        libc::SYS_rt_sigprocmask if fourth == 8 => Way::Mask,
        libc::SYS_clone => clone(first, second),
        libc::SYS_clone3 if first != 0 && second >= CLONE_ARGS_BYTES => {
            let args = clone_args(first);
            clone(args.flags, args.stack.wrapping_add(args.stack_bytes))
        }
        libc::SYS_fork => Way::Fork,
        libc::SYS_vfork => Way::InPlace,
        _ => Way::Resume,
    }
}

/// The mask after `rt_sigprocmask(how, set)`; `None` where the kernel would refuse. `never` is left out of what is blocked.
pub(super) fn new_mask(how: u64, mask: u64, set: u64, never: u64) -> Option<u64> {
    match how as libc::c_int {
        libc::SIG_BLOCK => Some(mask | set & !never),
        libc::SIG_UNBLOCK => Some(mask & !set),
        libc::SIG_SETMASK => Some(set & !never),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way_of(number: i64, arguments: [u64; 4]) -> Way {
        let args = CloneArgs { flags: CLONE_VM, stack: 0x10000, stack_bytes: 0x1000 };
        way(number, arguments, |_| args)
    }

    #[test]
    fn calls_that_would_break_in_the_stub_go_another_way() {
        assert_eq!(way_of(libc::SYS_write, [1, 2, 3, 4]), Way::Resume);
        assert_eq!(way_of(libc::SYS_exit, [0; 4]), Way::Resume);
        assert_eq!(way_of(libc::SYS_rt_sigreturn, [0; 4]), Way::Sigreturn);
        assert_eq!(way_of(libc::SYS_rt_sigprocmask, [0, 0, 0, 8]), Way::Mask);
        assert_eq!(way_of(libc::SYS_rt_sigprocmask, [0, 0, 0, 16]), Way::Resume);
        // fork has a copy of the stack, vfork has not.
        assert_eq!(way_of(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0]), Way::Fork);
        assert_eq!(way_of(libc::SYS_clone, [CLONE_VM, 0, 0, 0]), Way::InPlace);
        assert_eq!(way_of(libc::SYS_vfork, [0; 4]), Way::InPlace);
        assert_eq!(way_of(libc::SYS_clone, [CLONE_VM, 0x7000, 0, 0]), Way::CloneWithStack(0x7000));
        assert_eq!(way_of(libc::SYS_clone3, [1, 88, 0, 0]), Way::CloneWithStack(0x11000));
        assert_eq!(way_of(libc::SYS_clone3, [1, 8, 0, 0]), Way::Resume);
        assert_eq!(way_of(libc::SYS_clone3, [0, 88, 0, 0]), Way::Resume);
    }

    #[test]
    fn our_signals_are_never_shut_out() {
        let never = 0b1000;
        assert_eq!(new_mask(0, 0b0001, 0b1110, never), Some(0b0111));
        assert_eq!(new_mask(1, 0b0011, 0b0010, never), Some(0b0001));
        assert_eq!(new_mask(2, 0b0011, u64::MAX, never), Some(!0b1000));
        assert_eq!(new_mask(3, 0, 0, never), None);
    }
}
