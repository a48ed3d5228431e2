package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postroad/queue"
)

// issuedPrefix marks what --server-cert names as a role of Vault's PKI engine: pki/ROLE. Each node makes such a key itself, so that there is
// nothing to write; a notice has all of them ask for a new certificate now.
const issuedPrefix = "pki/"

// notices is what renewing needs of a running server.
type notices interface {
	Nodes(ctx context.Context) ([]queue.Node, error)
	Notify(ctx context.Context, topic, name string) error
}

// renewedCert is a certificate of one node.
type renewedCert struct {
	Node string `json:"node"`
	Name string `json:"certificate"`
	Old  string `json:"old"`
	New  string `json:"new,omitempty"` // empty: not yet
}

// isIssued reports that all certificates to be rotated are issued by Vault.
func (r *secretsRotateCmd) isIssued() (bool, error) {
	isOne := func(name string) bool { return strings.HasPrefix(name, issuedPrefix) }
	switch {
	case !slices.ContainsFunc(r.ServerCert, isOne):
		return false, nil
	case r.CA || len(r.Client) > 0 || len(r.Names) > 0 || slices.ContainsFunc(r.ServerCert, func(name string) bool { return !isOne(name) || name == issuedPrefix }):
		return false, usage("--server-cert pki/ROLE goes with no other thing to rotate, and takes no --names: these are in the configuration of the nodes")
	}
	return true, nil
}

// renew has certificates that Vault issues renewed by the nodes of the cluster of the server that runs here.
func (r *secretsRotateCmd) renew(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	return r.renewIssued(a, client, nodesEvery)
}

// renewIssued has new certificates issued, and waits until every node that has one has a new one in force.
func (r *secretsRotateCmd) renewIssued(a *app, server notices, every time.Duration) error {
	nodes, err := server.Nodes(a.ctx)
	if err != nil {
		return fmt.Errorf("look which nodes have such a certificate: %w", err)
	}
	var list []renewedCert
	for _, name := range r.ServerCert {
		found := issuedOn(nodes, name)
		if len(found) == 0 {
			return fmt.Errorf("no ingress node says that it has a certificate %s: see ingress.listeners[].certificates[].pki of the nodes, and postroad status", name)
		}
		list = append(list, found...)
	}
	if r.DryRun {
		if a.flags.JSON {
			return a.print(list)
		}
		for _, c := range list {
			a.tell("would have %s issued anew on %s: now %s\n", c.Name, c.Node, c.Old)
		}
		return nil
	}
	for _, name := range r.ServerCert {
		if err := server.Notify(a.ctx, topicTLS, name); err != nil {
			return fmt.Errorf("tell the nodes to renew %s: %w", name, err)
		}
	}
	err = r.awaitIssued(a, server, list, every)
	if a.flags.JSON {
		return errors.Join(a.print(list), err)
	}
	for _, c := range list {
		if c.New != "" {
			a.tell("%s on %s: %s\n", c.Name, c.Node, c.New)
		}
	}
	return err
}

// awaitIssued fills in what is new.
func (r *secretsRotateCmd) awaitIssued(a *app, server notices, list []renewedCert, every time.Duration) error {
	wait, cancel := context.WithTimeout(a.ctx, max(r.Wait, every))
	defer cancel()
	for {
		var late []string
		nodes, err := server.Nodes(wait)
		for i := range list {
			c := &list[i]
			if c.New == "" && err == nil {
				c.New = issuedNow(nodes, c)
			}
			if c.New == "" {
				late = append(late, c.Name+" on "+c.Node)
			}
		}
		if len(late) == 0 {
			return nil
		}
		select {
		case <-wait.Done():
			return errors.Join(fmt.Errorf("not renewed after %s: %s. The certificates before stay in force; the logs of the nodes and postroad status say why", age(r.Wait), strings.Join(late, ", ")), err)
		case <-time.After(every):
		}
	}
}

// issuedOn are the certificates of a role that nodes have in force: one node has several when its listeners ask for several names.
func issuedOn(nodes []queue.Node, name string) []renewedCert {
	var list []renewedCert
	for _, n := range nodes {
		if n.Draining {
			continue
		}
		for key, text := range n.Facts {
			if what, is := strings.CutPrefix(key, "certificate "); is && (what == name || strings.HasPrefix(what, name+" for ")) {
				list = append(list, renewedCert{Node: n.Name, Name: what, Old: text})
			}
		}
	}
	slices.SortFunc(list, func(a, b renewedCert) int { return strings.Compare(a.Node+a.Name, b.Node+b.Name) })
	return list
}

// issuedNow is the certificate that has taken the place of c; empty: none yet.
func issuedNow(nodes []queue.Node, c *renewedCert) string {
	for _, n := range nodes {
		if n.Name != c.Node || n.Draining {
			continue
		}
		if text := n.Facts["certificate "+c.Name]; text != c.Old && strings.HasPrefix(text, "sha256:") {
			return text
		}
		return ""
	}
	return "the node is gone"
}
