package main

import (
	"strings"
	"testing"
)

// Every named step of the tree belongs to a kind that we know the processes of.
func TestStepsOfTheTree(t *testing.T) {
	s, err := findSteps("../../../..", func(int) int { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	if len(s.todo) < 10 {
		t.Errorf("steps: got %v, want those of the queue", s.todo)
	}
	for _, step := range s.todo {
		if _, known := stepRoles[kindOf(step)]; !known {
			t.Errorf("step %s: nobody said which processes come to it", step)
		}
	}
}

func TestStepsAreArmedUntilTheyAreHit(t *testing.T) {
	s := &steps{draw: func(int) int { return 0 }, todo: []string{"accept.mail", "sign.taken"},
		tries: make(map[string]int), armed: make(map[string]string), hit: make(map[string]int)}
	if got := s.arm("delivery-1"); got != "" {
		t.Errorf("delivery: got %q, want nothing to arm", got)
	}
	if got := s.arm("ingress-1"); got != "accept.mail:1" {
		t.Errorf("ingress: got %q, want the step of accepting", got)
	}
	if got := s.arm("ingress-2"); got != "" {
		t.Errorf("second ingress: got %q, want nothing: the step is armed elsewhere", got)
	}
	if got := s.ended("ingress-1", false); got != "" {
		t.Errorf("killed by us: got step %q", got)
	}
	s.arm("ingress-1")
	if got := s.ended("ingress-1", true); got != "accept.mail" {
		t.Errorf("killed by itself: got %q, want the step", got)
	}
	for range maxArmings {
		s.arm("signer-1")
		s.ended("signer-1", false)
	}
	if s.left() != 0 {
		t.Errorf("left: got %d, want 0: one is hit, the other given up", s.left())
	}
	if text := s.String(); !strings.Contains(text, "1 named") || !strings.Contains(text, "sign.taken") {
		t.Errorf("summary: got %q", text)
	}
}
