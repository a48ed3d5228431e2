package daemon

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// forbidCore keeps what is in memory out of core files: the kernel writes none of this process, whatever core_pattern says, and other
// processes of the same user may not look into it (prctl(2), PR_SET_DUMPABLE). Root still may: gcore goes on working for the one who has
// to look into a signer that hangs. The limit says the same to whoever reads /proc/PID/limits. Neither can be undone by a setting.
func forbidCore() error {
	var errs []error
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		errs = append(errs, fmt.Errorf("make the process one that is not dumped: %w", err))
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		errs = append(errs, fmt.Errorf("set the limit of core files to 0: %w", err))
	}
	return errors.Join(errs...)
}
