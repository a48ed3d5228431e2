package secrets

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"postroad/signer/vault"
)

var (
	// ErrNotThere says that there is no such secret.
	ErrNotThere = errors.New("there is no such secret")
	// ErrChanged says that somebody else has changed a secret at the same time; nothing happened.
	ErrChanged = errors.New("the secret was changed by somebody else meanwhile")
	// ErrMaybe says that nobody knows whether a change has happened: the answer was lost.
	ErrMaybe = errors.New("it may have happened or not")
)

// tree is where secrets lie that have text fields: all but DKIM keys and clients, which have stores of their own.
type tree interface {
	// list names the secrets of a kind.
	list(ctx context.Context, kind string) ([]string, error)
	// look finds out about a secret what is to be known without reading it.
	look(ctx context.Context, kind, name string) (item, error)
	// read reads these fields of a secret, where that is possible only these. Fields that it does not have are missing.
	read(ctx context.Context, kind, name string, fields ...string) (item, error)
	// write puts a secret in place of that revision, whole or not at all; "" is for one that is not there. What is said about it is for
	// everybody who may look at it.
	write(ctx context.Context, kind, name string, fields, about map[string]string, revision string) (item, error)
	// forget destroys what is left of former versions.
	forget(ctx context.Context, kind, name string) error
}

// item is what is known of a secret.
type item struct {
	fields map[string]string
	about  map[string]string // that was said when this version was written; nil: nobody said anything
	Version
}

// Version tells a version of a secret from others.
type Version struct {
	Number   int       `json:"version,omitempty"` // in Vault; a directory has none
	Modified time.Time `json:"modified,omitzero"`

	revision string
}

// String is the number, or when the file was written.
func (v Version) String() string {
	switch {
	case v.Number > 0:
		return strconv.Itoa(v.Number)
	case v.Modified.IsZero():
		return "-"
	}
	return v.Modified.Local().Format(time.DateTime)
}

// checkName refuses what cannot be the name of a secret everywhere.
func checkName(kind, name string) error {
	const octets = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+@"
	if name == "" || len(name) > 128 || name[0] == '.' || strings.Trim(name, octets) != "" {
		return fmt.Errorf("%q is no name of a secret below %s/: want letters, digits, and . _ - + @, no dot in front", name, kind)
	}
	return nil
}

// vaultTree is a tree in Vault.
type vaultTree struct{ vault *vault.Client }

var _ tree = vaultTree{}

// aboutVersion is the name in custom metadata that says which version the others are of.
const aboutVersion = "version"

func (t vaultTree) list(ctx context.Context, kind string) ([]string, error) {
	all, err := t.vault.List(ctx, kind)
	var names []string
	for _, name := range all {
		if !strings.HasSuffix(name, "/") {
			names = append(names, name)
		}
	}
	return names, err
}

func (t vaultTree) look(ctx context.Context, kind, name string) (item, error) {
	m, err := t.vault.Metadata(ctx, kind+"/"+name)
	if err == nil && (m.Version == 0 || m.Deleted) {
		err = vault.ErrNotFound
	}
	if err != nil {
		return item{}, t.explain(kind, name, err)
	}
	return item{about: said(m.Custom, m.Version), Version: versionOf(m.Version, m.Created)}, nil
}

func (t vaultTree) read(ctx context.Context, kind, name string, fields ...string) (item, error) {
	s, err := t.vault.Read(ctx, kind+"/"+name)
	if err != nil {
		return item{}, t.explain(kind, name, err)
	}
	i := item{fields: map[string]string{}, about: said(s.Custom, s.Version), Version: versionOf(s.Version, s.Created)}
	for _, field := range fields {
		if text, is := s.Data[field].(string); is && text != "" {
			i.fields[field] = text
		}
	}
	return i, nil
}

func versionOf(n int, created time.Time) Version {
	return Version{Number: n, Modified: created, revision: strconv.Itoa(n)}
}

// said is the custom metadata, if it speaks of this version.
func said(custom map[string]string, version int) map[string]string {
	if custom[aboutVersion] != strconv.Itoa(version) {
		return nil
	}
	return custom
}

func (t vaultTree) write(ctx context.Context, kind, name string, fields, about map[string]string, revision string) (item, error) {
	path := kind + "/" + name
	cas := 0
	if revision != "" {
		var err error
		if cas, err = strconv.Atoi(revision); err != nil {
			return item{}, fmt.Errorf("write %s: revision %q is none of Vault's", path, revision)
		}
	} else if m, err := t.vault.Metadata(ctx, path); err == nil && m.Deleted {
		cas = m.Version // somebody has deleted it, and its versions count on
	} else if err != nil && !errors.Is(err, vault.ErrNotFound) {
		return item{}, t.explain(kind, name, err)
	}
	data := make(map[string]any, len(fields))
	for field, text := range fields {
		data[field] = text
	}
	n, err := t.vault.Write(ctx, path, data, cas)
	if errors.Is(err, vault.ErrUnavailable) {
		return item{}, fmt.Errorf("%w: %w", ErrMaybe, err)
	}
	if err != nil {
		return item{}, t.explain(kind, name, err)
	}
	custom := maps.Clone(about)
	if custom == nil {
		custom = map[string]string{}
	}
	custom[aboutVersion] = strconv.Itoa(n)
	maps.DeleteFunc(custom, func(_, text string) bool { return text == "" || len(text) > maxAbout })
	gone := slices.DeleteFunc(slices.Clone(aboutAll), func(name string) bool { return custom[name] != "" }) // what was said of the version before
	// It only spares others from reading the secret itself.
	_ = t.vault.SetCustom(ctx, path, custom, gone...)
	return item{fields: fields, about: custom, Version: versionOf(n, time.Now())}, nil
}

// maxAbout is the longest text that Vault takes as custom metadata.
const maxAbout = 512

func (t vaultTree) forget(ctx context.Context, kind, name string) error {
	path := kind + "/" + name
	m, err := t.vault.Metadata(ctx, path)
	if err != nil {
		return t.explain(kind, name, err)
	}
	var old []int
	for _, n := range m.Kept {
		if n < m.Version {
			old = append(old, n)
		}
	}
	return t.vault.Destroy(ctx, path, old...)
}

// explain puts the errors of Vault into our words.
func (t vaultTree) explain(kind, name string, err error) error {
	switch {
	case errors.Is(err, vault.ErrNotFound):
		return fmt.Errorf("%s/%s: %w", kind, name, ErrNotThere)
	case errors.Is(err, vault.ErrChanged):
		return fmt.Errorf("%s/%s: %w", kind, name, ErrChanged)
	}
	return err
}
