package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"postroad/cmd/internal/secrets"
	"postroad/queue"
)

// lookLimit bounds the questions to a server: lists do without its answers.
const lookLimit = 5 * time.Second

// sight is what running servers tell of secrets.
type sight struct {
	uses  map[string][]queue.Use // by client
	nodes []queue.Node
	err   error // why nothing is known
}

// look asks the server that runs here, if one does.
func (a *app) look() *sight {
	seen := &sight{uses: make(map[string][]queue.Use)}
	client, err := a.client()
	if err != nil {
		seen.err = err
		return seen
	}
	ctx, cancel := context.WithTimeout(a.ctx, lookLimit)
	defer cancel()
	uses, err := client.Uses(ctx)
	if err == nil {
		seen.nodes, err = client.Nodes(ctx)
	}
	seen.err = err
	for _, u := range uses {
		seen.uses[u.Client] = append(seen.uses[u.Client], u)
	}
	return seen
}

// lastUsed is when a client was seen with a password; nil: never, or nobody knows.
func (seen *sight) lastUsed(client, password string) *time.Time {
	for _, u := range seen.uses[client] {
		if u.Password == password {
			return &u.Last
		}
	}
	return nil
}

// of adds to an entry what is known.
func (seen *sight) of(e *secrets.Entry) listedSecret {
	one := listedSecret{Entry: *e}
	switch e.Kind {
	case secrets.KindClients:
		one.Uses = seen.uses[e.Name]
		for i := range one.Uses {
			if one.LastUse == nil || one.Uses[i].Last.After(one.LastUse.Last) {
				one.LastUse = &one.Uses[i]
			}
		}
		switch {
		case seen.err != nil:
			one.UseIs = "unknown"
		case one.LastUse == nil:
			one.UseIs = "never"
		default:
			one.UseIs = "known"
		}
	case secrets.KindTLS:
		serving := certificatesOf(seen.nodes, e.Name)
		one.Serves = len(serving)
		for node, fingerprint := range serving {
			if fingerprint == e.Fingerprint {
				one.InForce = append(one.InForce, node)
			}
		}
		slices.Sort(one.InForce)
	}
	return one
}

// certificatesOf are the fingerprints of the certificate tls/<name> that ingress nodes have in force, by node. Nodes that have none of that
// name, or that are about to end, are left out.
func certificatesOf(nodes []queue.Node, name string) map[string]string {
	found := make(map[string]string)
	for _, n := range nodes {
		if n.Draining || !slices.Contains(n.Roles, "ingress") {
			continue
		}
		for key, text := range n.Facts {
			what, is := strings.CutPrefix(key, "certificate ")
			isIt := what == "tls/"+name || what == name || strings.HasSuffix(what, "/tls/"+name+"/cert.pem")
			if !is || !isIt {
				continue
			}
			// Several listeners may differ for a moment: what is not the same everywhere is not in force.
			fingerprint, _, _ := strings.Cut(text, " ")
			if before, has := found[n.Name]; has && before != fingerprint {
				fingerprint = ""
			}
			found[n.Name] = fingerprint
		}
	}
	return found
}
