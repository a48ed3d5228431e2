package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postroad/queue"
)

// issuing are nodes of which some have a new certificate after a notice and a few looks.
type issuing struct {
	nodes   []queue.Node
	told    []string
	looks   int
	renews  map[string]bool // by node
	refuses error
}

func (i *issuing) Nodes(context.Context) ([]queue.Node, error) {
	if i.looks++; i.looks == 4 {
		for n := range i.nodes {
			if name := i.nodes[n].Name; len(i.told) > 0 && i.renews[name] {
				i.nodes[n].Facts = map[string]string{"certificate pki/edge": "sha256:new-" + name + " until 2027"}
			}
		}
	}
	return i.nodes, nil
}

func (i *issuing) Notify(_ context.Context, topic, name string) error {
	i.told = append(i.told, topic+" "+name)
	return i.refuses
}

// TestRenewIssued sends a notice and waits for every node that has the certificate.
func TestRenewIssued(t *testing.T) {
	run := func(change func(*secretsRotateCmd, *issuing)) (*issuing, string, error) {
		nodes := &issuing{renews: map[string]bool{"in1": true, "in2": true}}
		for _, name := range []string{"in1", "in2"} {
			nodes.nodes = append(nodes.nodes, queue.Node{Name: name, Facts: map[string]string{"certificate pki/edge": "sha256:old-" + name + " until 2026", "certificate pki/edgeless": "sha256:x"}})
		}
		r := &secretsRotateCmd{ServerCert: []string{"pki/edge"}, Wait: 300 * time.Millisecond}
		change(r, nodes)
		out := new(bytes.Buffer)
		var err error
		synctest.Test(t, func(t *testing.T) {
			a := &app{ctx: t.Context(), out: out, err: out, flags: &cli{}}
			err = r.renewIssued(a, nodes, time.Millisecond)
		})
		return nodes, out.String(), err
	}
	nodes, said, err := run(func(*secretsRotateCmd, *issuing) {})
	if err != nil || strings.Join(nodes.told, ",") != "tls pki/edge" {
		t.Errorf("got %v, told %q", err, nodes.told)
	}
	mentions(t, said, "pki/edge on in1: sha256:new-in1", "pki/edge on in2: sha256:new-in2")
	if _, _, err = run(func(_ *secretsRotateCmd, i *issuing) { i.renews["in2"] = false }); err == nil || !strings.Contains(err.Error(), "pki/edge on in2") || strings.Contains(err.Error(), "in1") {
		t.Errorf("one node does not renew: got %v", err)
	}
	if nodes, said, err = run(func(r *secretsRotateCmd, _ *issuing) { r.DryRun = true }); err != nil || len(nodes.told) > 0 || !strings.Contains(said, "would have pki/edge") {
		t.Errorf("dry run: got %v, told %q, %s", err, nodes.told, said)
	}
	if _, _, err = run(func(r *secretsRotateCmd, _ *issuing) { r.ServerCert = []string{"pki/other"} }); err == nil || !strings.Contains(err.Error(), "no ingress node") {
		t.Errorf("nobody has it: got %v", err)
	}
	gone := errors.New("gone")
	if _, _, err = run(func(_ *secretsRotateCmd, i *issuing) { i.refuses = gone }); !errors.Is(err, gone) {
		t.Errorf("got %v, want %v", err, gone)
	}
}

func TestRenewIssuedAlone(t *testing.T) {
	for _, args := range []string{"--server-cert pki/edge --server-cert relay", "--server-cert pki/edge --ca", "--server-cert pki/", "--server-cert pki/edge --names a.example"} {
		status, _, errs := command(t, append([]string{"secrets", "rotate"}, strings.Fields(args)...)...)
		if status != 2 || !strings.Contains(errs, "pki/ROLE") {
			t.Errorf("%s: got %d, %s", args, status, errs)
		}
	}
}
