package certs

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"postroad/queue"
)

// InForce are the certificates that handshakes take, by the names of their pairs.
func (s *Store) InForce() map[string]*x509.Certificate {
	in := make(map[string]*x509.Certificate, len(s.pairs))
	for i, c := range *s.now.Load() {
		in[s.pairs[i].Cert] = c.Leaf
	}
	return in
}

// Describe is a certificate as one node tells it to others.
func Describe(leaf *x509.Certificate) string {
	return fmt.Sprintf("sha256:%x until %s", sha256.Sum256(leaf.Raw), leaf.NotAfter.UTC().Format(time.RFC3339))
}

// Conditions are what is wrong with the certificates in force: one ends within two weeks, or what should replace it cannot be used.
func (s *Store) Conditions() []queue.Condition {
	var list []queue.Condition
	now := time.Now()
	for i, c := range *s.now.Load() {
		name, end := s.pairs[i].Cert, c.Leaf.NotAfter
		do := "put a new one in its place; no restart is needed"
		if s.pairs[i].Renews {
			do = "see in the log why no new one is issued"
		}
		day := end.UTC().Format(time.DateOnly)
		add := func(since time.Time, text string) {
			list = append(list, queue.Condition{Part: "certificates", Text: "the certificate " + name + text, Since: since, Do: do})
		}
		switch {
		case now.After(end):
			add(end, " has ended on "+day+": clients that verify refuse it")
		case end.Sub(now) < s.pairs[i].soonFor(c.Leaf):
			add(end.Add(-s.pairs[i].soonFor(c.Leaf)), " ends on "+day)
		}
	}
	if p := s.faults.Load(); p != nil {
		for _, f := range *p {
			do := "put both halves right, or the old ones back; no restart is needed"
			switch {
			case errors.Is(f.err, ErrDenied):
				do = "let this role read it; no restart is needed"
			case errors.Is(f.err, ErrAway):
				continue // the source tells of that
			}
			list = append(list, queue.Condition{Part: "certificates", Since: f.since, Do: do,
				Text: fmt.Sprintf("the certificate in %s cannot be used, the one before stays in force: %v", f.name, f.err)})
		}
	}
	return list
}

// fault is a pair that cannot be used.
type fault struct {
	name  string
	err   error
	since time.Time
}

// setFault notes that a pair cannot be used, or (nil) that it can; only the one who looks calls it.
func (s *Store) setFault(name string, err error) {
	var list []fault
	since := time.Now()
	if p := s.faults.Load(); p != nil {
		for _, f := range *p {
			if f.name != name {
				list = append(list, f)
			} else {
				since = f.since
			}
		}
	}
	if err != nil {
		list = append(list, fault{name, err, since})
	}
	s.faults.Store(&list)
}
