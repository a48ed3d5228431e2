package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// Paths of secrets are below Mount and Prefix: "clients/host1". All methods
// wrap the errors of this package and the error of a ctx that has ended. A write
// that ends with ErrUnavailable may have happened.

// Secret is the current version of a secret.
type Secret struct {
	Data    map[string]any // numbers are json.Number
	Version int            // from 1
	Created time.Time      // of this version
	Custom  map[string]string
}

// Metadata is what Vault knows of a secret besides what is in it.
type Metadata struct {
	Version int       // the current one; 0: there has never been any
	Created time.Time // of that version
	Deleted bool      // that version cannot be read
	Kept    []int     // versions whose data Vault has still, deleted ones too; ascending
	Custom  map[string]string
}

// decode takes numbers as they are written.
func decode(data json.RawMessage, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	return nil
}

// path makes the path of a request about a secret.
func (c *Client) path(what, path string) (string, error) {
	if err := checkPath(path); err != nil {
		return "", err
	}
	return c.o.Mount + "/" + what + "/" + c.o.Prefix + "/" + path, nil
}

// about sends a request about a secret and decodes the answer.
func (c *Client) about(ctx context.Context, doing, what, path string, r call, into any) error {
	var err error
	if r.path, err = c.path(what, path); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	got, err := c.do(ctx, doing, r)
	if err != nil || into == nil {
		return err
	}
	if err := decode(got.Data, into); err != nil {
		return explain(ctx, doing, r.path, err)
	}
	return nil
}

// Read reads the current version of a secret.
func (c *Client) Read(ctx context.Context, path string) (Secret, error) {
	var got struct {
		Data     map[string]any `json:"data"`
		Metadata struct {
			Version   int               `json:"version"`
			Created   time.Time         `json:"created_time"`
			Deleted   string            `json:"deletion_time"`
			Destroyed bool              `json:"destroyed"`
			Custom    map[string]string `json:"custom_metadata"`
		} `json:"metadata"`
	}
	if err := c.about(ctx, "read", "data", path, call{method: http.MethodGet}, &got); err != nil {
		return Secret{}, err
	}
	m := got.Metadata
	switch {
	case m.Version < 1:
		return Secret{}, explain(ctx, "read", path, fmt.Errorf("%w: it has no version", errNoAnswer))
	case got.Data == nil && (m.Deleted != "" || m.Destroyed):
		return Secret{}, fmt.Errorf("read %s: %w", path, ErrNotFound)
	}
	return Secret{got.Data, m.Version, m.Created, m.Custom}, nil
}

// Metadata reads what is known of a secret without reading it.
func (c *Client) Metadata(ctx context.Context, path string) (Metadata, error) {
	var got struct {
		Version  int               `json:"current_version"`
		Custom   map[string]string `json:"custom_metadata"`
		Versions map[string]struct {
			Created   time.Time `json:"created_time"`
			Deleted   string    `json:"deletion_time"`
			Destroyed bool      `json:"destroyed"`
		} `json:"versions"`
	}
	if err := c.about(ctx, "read metadata of", "metadata", path, call{method: http.MethodGet}, &got); err != nil {
		return Metadata{}, err
	}
	m := Metadata{Version: got.Version, Custom: got.Custom, Deleted: true}
	for name, v := range got.Versions {
		n, err := strconv.Atoi(name)
		if err != nil {
			return Metadata{}, explain(ctx, "read metadata of", path, fmt.Errorf("%w: version %q", errNoAnswer, name))
		}
		if !v.Destroyed {
			m.Kept = append(m.Kept, n)
		}
		if n == m.Version {
			m.Created, m.Deleted = v.Created, v.Destroyed || isPast(v.Deleted)
		}
	}
	slices.Sort(m.Kept)
	return m, nil
}

// isPast tells whether a version is deleted: the time may be yet to come.
func isPast(deletion string) bool {
	if deletion == "" {
		return false
	}
	at, err := time.Parse(time.RFC3339Nano, deletion)
	return err != nil || !at.After(time.Now())
}

// List lists what lies right below a path, sorted; "" is the Prefix itself.
// Names of folders end with a slash. Nothing there is no error.
func (c *Client) List(ctx context.Context, path string) ([]string, error) {
	full := c.o.Mount + "/metadata/" + c.o.Prefix
	if path != "" {
		var err error
		if full, err = c.path("metadata", path); err != nil {
			return nil, fmt.Errorf("list: %w", err)
		}
	}
	got, err := c.do(ctx, "list", call{method: http.MethodGet, path: full, query: url.Values{"list": {"true"}}})
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var data struct {
		Keys []string `json:"keys"`
	}
	if err := decode(got.Data, &data); err != nil || data.Keys == nil {
		return nil, explain(ctx, "list", full, errNoAnswer)
	}
	slices.Sort(data.Keys)
	return data.Keys, nil
}

// Write stores a new version of a secret and returns its number. cas is the
// version that must be the current one, 0 for a secret that must never have
// been there, negative for any. ErrChanged: it is not so, and nothing happened.
func (c *Client) Write(ctx context.Context, path string, data map[string]any, cas int) (int, error) {
	return c.store(ctx, "write", http.MethodPut, path, data, cas)
}

// Patch changes single fields, by JSON merge patch: a field that is null goes,
// one that is not named stays, unread. ErrNotFound: there is no current version.
func (c *Client) Patch(ctx context.Context, path string, data map[string]any, cas int) (int, error) {
	return c.store(ctx, "patch", http.MethodPatch, path, data, cas)
}

func (c *Client) store(ctx context.Context, doing, method, path string, data map[string]any, cas int) (int, error) {
	options := map[string]any{}
	if cas >= 0 {
		options["cas"] = cas
	}
	var got struct {
		Version int `json:"version"`
	}
	err := c.about(ctx, doing, "data", path, call{method: method, body: map[string]any{"data": data, "options": options}}, &got)
	if err != nil {
		return 0, err
	}
	return got.Version, nil
}

// SetCustom sets names of the custom metadata of a secret, and removes those of
// gone; what else is there stays. Vault takes at most 64 names of at most 128
// octets, with values of 1 to 512 octets.
//
// It is one step where the policy allows to patch metadata, or else a look and a
// write: what somebody else changes between them is lost.
func (c *Client) SetCustom(ctx context.Context, path string, custom map[string]string, gone ...string) error {
	patch := make(map[string]any, len(custom)+len(gone))
	for _, name := range gone {
		patch[name] = nil
	}
	for name, v := range custom {
		patch[name] = v
	}
	const doing = "write metadata of"
	r := call{method: http.MethodPatch, body: map[string]any{"custom_metadata": patch}}
	err := c.about(ctx, doing, "metadata", path, r, nil)
	if !isNotFound(err) && !errors.Is(err, ErrDenied) {
		return err
	}
	m, lookErr := c.Metadata(ctx, path)
	if lookErr != nil && !isNotFound(lookErr) {
		return err // the look fails for the same reason
	}
	whole := maps.Clone(m.Custom)
	if whole == nil {
		whole = make(map[string]string, len(custom))
	}
	for _, name := range gone {
		delete(whole, name)
	}
	maps.Copy(whole, custom)
	r = call{method: http.MethodPut, body: map[string]any{"custom_metadata": whole}}
	return c.about(ctx, doing, "metadata", path, r, nil)
}

// Delete removes a secret for good, with all its versions and the memory that it
// was ever there. One that is not there is no error.
func (c *Client) Delete(ctx context.Context, path string) error {
	return c.about(ctx, "delete", "metadata", path, call{method: http.MethodDelete}, nil)
}

// Destroy destroys what is in these versions of a secret, for good. That they
// were there stays known.
func (c *Client) Destroy(ctx context.Context, path string, versions ...int) error {
	if len(versions) == 0 {
		return nil
	}
	r := call{method: http.MethodPut, body: map[string]any{"versions": versions}}
	return c.about(ctx, "destroy versions of", "destroy", path, r, nil)
}
