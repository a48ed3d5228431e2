package daemon

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// coreChild in the environment makes the test the process that is looked at: what forbidCore does cannot be undone.
const coreChild = "POSTROAD_TEST_CORE_CHILD"

func TestForbidCore(t *testing.T) {
	if os.Getenv(coreChild) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestForbidCore$", "-test.v")
		cmd.Env = append(os.Environ(), coreChild+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := forbidCore(); err != nil {
		t.Fatal(err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || dumpable != 0 {
		t.Errorf("dumpable: got %d, %v, want 0", dumpable, err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil || limit != (unix.Rlimit{}) {
		t.Errorf("limit of core files: got %+v, %v, want 0", limit, err)
	}
}
