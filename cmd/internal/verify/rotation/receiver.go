package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	"postroad/cmd/internal/sink"
)

const (
	idField = "Message-ID"

	// maxAge is how long an answer of the DNS is good: a record that has changed is seen as it is.
	maxAge      = 500 * time.Millisecond
	lookupLimit = 30 * time.Second
)

// The algorithms that every message must be signed with.
var algorithms = []string{"rsa-sha256", "ed25519-sha256"}

// receiver verifies what arrives.
type receiver struct {
	o   *options
	t   *tally
	dns net.Resolver

	mu      sync.Mutex
	answers map[string]answer // by name
}

type answer struct {
	at      time.Time
	records []string
}

func newReceiver(o *options, t *tally) *receiver {
	r := &receiver{o: o, t: t, answers: make(map[string]answer)}
	r.dns = net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, o.dns)
	}}
	return r
}

// lookup asks the name server itself, so that nobody in between remembers anything.
func (r *receiver) lookup(name string) ([]string, error) {
	r.mu.Lock()
	a, is := r.answers[name]
	r.mu.Unlock()
	if is && time.Since(a.at) < maxAge {
		return a.records, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupLimit)
	defer cancel()
	asked := time.Now()
	records, err := r.dns.LookupTXT(ctx, name+".")
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.answers) >= 100 {
		clear(r.answers)
	}
	r.answers[name] = answer{asked, records}
	return records, nil
}

// take is called at the final dot, which is the moment of delivery.
func (r *receiver) take(m *sink.Message) sink.Reply {
	header, _, _ := bytes.Cut(m.Data, []byte("\r\n\r\n"))
	fields := fieldsOf(string(header))
	id, err := idOf(fields)
	if err != nil {
		r.t.stranger(err)
		return ""
	}
	r.t.delivered(id, r.o.domain, r.verify(m.Data, fields))
	return ""
}

// signature is one of a message, and what is wrong with it.
type signature struct {
	domain, selector, algorithm string
	fault                       error
}

// verify checks all signatures. The library tells neither selector nor algorithm, but keeps the order.
func (r *receiver) verify(message []byte, fields []field) []signature {
	var list []signature
	for _, f := range fields {
		if strings.EqualFold(f.name, "DKIM-Signature") {
			list = append(list, signature{domain: tag(f.value, "d"), selector: tag(f.value, "s"), algorithm: tag(f.value, "a"), fault: errors.New("not verified")})
		}
	}
	results, err := dkim.VerifyWithOptions(bytes.NewReader(message), &dkim.VerifyOptions{LookupTXT: r.lookup})
	for i := range list {
		switch {
		case err != nil:
			list[i].fault = err
		case i < len(results):
			list[i].fault = results[i].Err
		}
	}
	return list
}

type field struct{ name, value string }

// fieldsOf takes a header apart, unfolded.
func fieldsOf(header string) []field {
	var list []field
	for line := range strings.SplitSeq(strings.NewReplacer("\r\n ", " ", "\r\n\t", " ").Replace(header), "\r\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			list = append(list, field{name, strings.TrimSpace(value)})
		}
	}
	return list
}

// tag is the value of a tag of a signature.
func tag(value, name string) string {
	for part := range strings.SplitSeq(value, ";") {
		if n, v, ok := strings.Cut(part, "="); ok && strings.TrimSpace(n) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// idOf is the id that the load gave a message.
func idOf(fields []field) (int64, error) {
	for _, f := range fields {
		if number, _, ok := strings.Cut(strings.TrimPrefix(f.value, "<"), "@load."); ok && strings.EqualFold(f.name, idField) {
			return strconv.ParseInt(number, 10, 64)
		}
	}
	return 0, fmt.Errorf("a message without an id of the load arrived: %.300q", fields)
}
