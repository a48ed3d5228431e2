package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// hitCall is how a step is named in the source of the roles.
var hitCall = regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`)

// stepRoles says in which processes the steps of a kind happen, by the first
// word of their names.
var stepRoles = map[string][]string{
	"accept":    {"ingress"},
	"sign":      {"signer"},
	"deliver":   {"delivery"},
	"settle":    {"delivery"},
	"bounce":    {"delivery"},
	"defer":     {"delivery"},
	"finish":    {"delivery"},
	"due":       {"delivery"},
	"pull":      {"delivery"},
	"comeback":  {"delivery"},
	"operate":   {"queue"},
	"cancel":    {"queue"},
	"reconcile": {}, // nothing is set aside in a run that goes well
}

// rareSteps are hit so seldom that the first time must do.
var rareSteps = map[string]bool{"accept.chunks": true, "operate.published": true, "cancel.finished": true, "pull.published": true}

const (
	maxArmings = 6  // of one step that is never reached
	commonHits = 60 // a step that happens all the time is let pass up to so often
)

// steps are the named steps of the queue protocol at which a process is to
// kill itself, each at least once.
type steps struct {
	draw func(int) int

	mu    sync.Mutex
	todo  []string
	tries map[string]int
	armed map[string]string // process → step
	hit   map[string]int
	never []string // that no process of a run comes to
}

// findSteps reads the steps from the source below root.
func findSteps(root string, draw func(int) int) (*steps, error) {
	s := &steps{draw: draw, tries: make(map[string]int), armed: make(map[string]string), hit: make(map[string]int)}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root:
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range hitCall.FindAllStringSubmatch(string(text), -1) {
			s.todo = append(s.todo, m[1])
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for named steps: %w", err)
	}
	slices.Sort(s.todo)
	s.todo = slices.Compact(s.todo)
	s.todo = slices.DeleteFunc(s.todo, func(step string) bool {
		roles, known := stepRoles[kindOf(step)]
		if known && len(roles) == 0 {
			s.never = append(s.never, step)
			return true
		}
		return false
	})
	return s, nil
}

func kindOf(step string) string {
	kind, _, _ := strings.Cut(step, ".")
	return kind
}

// happensIn reports whether the process comes to the step. Steps of a kind that
// is not known are tried everywhere.
func happensIn(step, process string) bool {
	roles, known := stepRoles[kindOf(step)]
	return !known || slices.ContainsFunc(roles, func(r string) bool { return strings.HasPrefix(process, r) })
}

// arm chooses a step for the next run of a process and returns the setting
// that arms it, or nothing.
func (s *steps) arm(process string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.armed, process)
	var fits []string
	for _, step := range s.todo {
		if happensIn(step, process) && !s.isArmed(step) {
			fits = append(fits, step)
		}
	}
	if len(fits) == 0 {
		return ""
	}
	step := fits[s.draw(len(fits))]
	if s.tries[step]++; s.tries[step] >= maxArmings {
		s.todo = slices.DeleteFunc(s.todo, func(t string) bool { return t == step })
	}
	s.armed[process] = step
	hits := 1 + s.draw(commonHits)
	if rareSteps[step] || s.tries[step] > maxArmings/2 {
		hits = 1 + s.draw(2)
	}
	return fmt.Sprintf("%s:%d", step, hits)
}

func (s *steps) isArmed(step string) bool {
	for _, a := range s.armed {
		if a == step {
			return true
		}
	}
	return false
}

// ended notes the end of a process and returns the step at which it killed
// itself, if it did.
func (s *steps) ended(process string, bySelf bool) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	step := s.armed[process]
	delete(s.armed, process)
	if step == "" || !bySelf {
		return ""
	}
	s.hit[step]++
	s.todo = slices.DeleteFunc(s.todo, func(t string) bool { return t == step })
	return step
}

// left are the steps that no process has killed itself at yet, but may.
func (s *steps) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.todo)
}

// String is for people.
func (s *steps) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var missed []string
	for step := range s.tries {
		if s.hit[step] == 0 {
			missed = append(missed, step)
		}
	}
	for _, step := range s.todo {
		if s.tries[step] == 0 {
			missed = append(missed, step)
		}
	}
	slices.Sort(missed)
	return fmt.Sprintf("killed at %d named steps; not reached %v, not part of a run %v", len(s.hit), missed, s.never)
}
