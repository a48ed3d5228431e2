package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"postroad/cmd/internal/config"
	"postroad/queue"
	"postroad/signer"
	"postroad/signer/keyring"
)

// explainedSigning is who would sign a message, and why.
type explainedSigning struct {
	Author       string               `json:"author"`            // domain of the From field
	Rule         string               `json:"rule,omitempty"`    // name in signer.domains; empty: none holds
	Clients      []string             `json:"clients,omitempty"` // whose mail is signed so; only when no client was given
	Others       string               `json:"others,omitempty"`  // what becomes of the mail of others
	Result       string               `json:"result"`            // signed, unsigned or held
	Signatures   []explainedSignature `json:"signatures"`        // from the top
	OnlyUnsigned bool                 `json:"only_unsigned,omitempty"`
	Why          string               `json:"why,omitempty"`
	Notes        []string             `json:"notes,omitempty"`
}

// explainedSignature is one signature; where keys cannot be read only its domain is known.
type explainedSignature struct {
	Domain    string `json:"domain"`
	Selector  string `json:"selector,omitempty"`
	Algorithm string `json:"algorithm,omitempty"`
	Kind      string `json:"kind"` // author or relay
}

// keyLookTimeout bounds one look for keys: a command does not wait for a Vault that is away.
const keyLookTimeout = 5 * time.Second

// signing explains the signatures of a message whose author and client are known.
func (e explainCmd) signing(a *app, c *config.Config, x *explanation) error {
	author := x.From.Becomes[strings.LastIndexByte(x.From.Becomes, '@')+1:]
	if x.Refused != nil || author == "" {
		return nil
	}
	own, err := ownDomain(c)
	if err != nil {
		return err
	}
	rules, err := c.SignerOptions(own).Rules()
	if err != nil {
		return fmt.Errorf("signer: %w", err)
	}
	d := rules.Decide(queue.KindMail, author, x.Client, x.class)
	s := &explainedSigning{Author: author, Rule: d.Rule, OnlyUnsigned: d.OnlyUnsigned, Signatures: []explainedSignature{}}
	if entry := signingEntry(c, d.Rule); entry != nil && x.Client == "" && len(entry.Clients) > 0 {
		s.Clients, s.Others = entry.Clients, string(entry.Others)
		client, class := oneOf(entry.Clients[0])
		d = rules.Decide(queue.KindMail, author, client, class)
	}
	s.follow(a.ctx, d, a.signingKeys())
	x.Signing = s
	return nil
}

// signingEntry is the entry of signer.domains with a name.
func signingEntry(c *config.Config, rule string) *config.SigningDomain {
	for i, entry := range c.Signer.Domains {
		for _, given := range entry.Names {
			if name, err := signer.CleanName(given); err == nil && name == rule {
				return &c.Signer.Domains[i]
			}
		}
	}
	return nil
}

// oneOf is a client that a word of clients stands for.
func oneOf(word string) (client, class string) {
	if network := signer.Network(word); network.IsValid() {
		return "net:" + network.String(), config.ClassNetwork
	}
	if class, is := strings.CutPrefix(strings.ToLower(word), "class:"); is {
		return "a client of " + word, class
	}
	return word, ""
}

// keySource looks for the keys of a domain.
type keySource func(ctx context.Context, domain string) ([]keyring.Key, error)

// signingKeys are the keys, or a source that says why there is none.
func (a *app) signingKeys() keySource {
	var keys keyring.Store
	s, err := a.secrets()
	if err == nil {
		keys, err = s.Keys()
	}
	return func(ctx context.Context, domain string) ([]keyring.Key, error) {
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, keyLookTimeout)
		defer cancel()
		return keys.Keys(ctx, domain)
	}
}

// follow goes the way of the signer.
func (s *explainedSigning) follow(ctx context.Context, d signer.Decision, keys keySource) {
	s.Why = d.Reason
	for _, domain := range d.Domains {
		if !s.sign(ctx, domain, "author", keys) {
			continue
		}
		s.Result, s.Why = "signed", ""
		if d.Beside && domain != d.Relay && !s.sign(ctx, d.Relay, "relay", keys) {
			s.Notes = append(s.Notes, "mail does not wait for that of "+d.Relay)
		}
		return
	}
	switch {
	case d.Otherwise == signer.Relay && s.sign(ctx, d.Relay, "relay", keys):
		s.Result = "signed"
	case d.Otherwise == signer.Pass:
		s.Result = "unsigned"
	default:
		s.Result = "held"
	}
}

// sign adds the signatures of a domain; it reports false when that has no keys.
func (s *explainedSigning) sign(ctx context.Context, domain, kind string, source keySource) bool {
	keys, err := source(ctx, domain)
	if errors.Is(err, keyring.ErrNoKey) {
		s.Notes = append(s.Notes, "there is no DKIM key of "+domain)
		return false
	}
	if err != nil {
		s.Notes = append(s.Notes, fmt.Sprintf("keys of %s cannot be looked at: %v", domain, err))
		s.Signatures = append(s.Signatures, explainedSignature{Domain: domain, Kind: kind})
		return true
	}
	for _, k := range keys {
		s.Signatures = append(s.Signatures, explainedSignature{Domain: k.Domain, Selector: k.Selector, Algorithm: string(k.Algorithm), Kind: kind})
	}
	return true
}

// show prints it for people.
func (s *explainedSigning) show(line func(name, format string, args ...any)) {
	text := map[string]string{"signed": "yes", "unsigned": "no, it goes out without a signature", "held": "not yet, it waits in the queue"}[s.Result]
	if slices.ContainsFunc(s.Signatures, func(one explainedSignature) bool { return one.Selector == "" }) {
		text += ", if there is a key"
	}
	if s.Why != "" {
		text += ": " + clean(s.Why, 1000)
	}
	if s.Rule != "" {
		text += "  (signer.domains: " + clean(s.Rule, 320) + ")"
	}
	line("signed", "%s", text)
	if len(s.Clients) > 0 {
		line("", "  for %s; mail of others: %s", clean(strings.Join(s.Clients, ", "), 1000), s.Others)
	}
	for _, one := range s.Signatures {
		text := "d=" + clean(one.Domain, 320)
		if one.Selector != "" {
			text += " s=" + clean(one.Selector, 320) + " a=" + one.Algorithm
		}
		if one.Kind == "relay" {
			text += "  (the relay's)"
		}
		line("", "  %s", text)
	}
	for _, note := range s.Notes {
		line("", "  %s", clean(note, 1000))
	}
	if s.OnlyUnsigned {
		line("", "  mail that bears a DKIM signature already passes as it is")
	}
}

// trustedNetwork tells a client that is named as the log names those of trusted networks: net:10.0.0.0/8.
func trustedNetwork(client string) (bool, error) {
	text, is := strings.CutPrefix(client, "net:")
	if !is {
		return false, nil
	}
	if _, err := netip.ParsePrefix(text); err != nil {
		return true, usage("%q is no network: write net:10.0.0.0/8", client)
	}
	return true, nil
}
